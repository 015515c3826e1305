"""Which labels a judge has still to compare, and which of them it is to score: from the tables."""

from __future__ import annotations

import duckdb
import pytest
from scopenote.store.null_ladder import LadderRow, read_null_ladder
from scopenote.store.schema import MIGRATIONS
from scopenote.store.scored_before import opinions_before, scored_before
from scopenote.store.scores import (
    chosen_to_score,
    forget_unrated,
    labels_to_shuffle,
    rivals_to_select_from,
    shuffled_labels,
)

SAE, JUDGE = "toy/1-res", "chat/m"
EMBEDDED = ["token_lookup"]
Rows = dict[str, list[tuple[int, str]]]


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    return connection


def label(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    feature: int = 0,
    text: str = "words",
    explainer: str = "highlighted",
    draw: int = 0,
    status: str = "done",
) -> None:
    row = {
        "id": name,
        "sae": SAE,
        "feature": feature,
        "text": text,
        "explainer": explainer,
        "draw": draw,
        "status": status,
    }
    connection.execute(
        """
        INSERT INTO labels BY NAME SELECT $id AS label_id, $sae AS sae_id, $feature AS feature,
            $text AS text, $explainer AS explainer, '1' AS prompt_version, 'gpt' AS model,
            $draw AS draw, 'auto' AS source, $status AS status, now() AS created_at, 'r' AS run_id
        """,
        row,
    )


def scored(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    split: str,
    value: float | None,
    simulator: str = JUDGE,
    scorer: str = "simulation",
) -> None:
    connection.execute(
        """
        INSERT INTO scores BY NAME SELECT $id AS label_id, $scorer AS scorer,
            $simulator AS simulator, 'correlation' AS metric, $split AS split, $value AS value,
            0 AS n_windows, 0 AS n_tokens, '{}' AS design, '' AS contexts_hash, 'r' AS run_id
        """,
        {"id": name, "simulator": simulator, "split": split, "value": value, "scorer": scorer},
    )


def rivals(connection: duckdb.DuckDBPyConnection) -> Rows:
    return rivals_to_select_from(connection, JUDGE, EMBEDDED)


def chosen(connection: duckdb.DuckDBPyConnection) -> Rows:
    return chosen_to_score(connection, JUDGE, EMBEDDED)


def test_a_label_alone_needs_no_comparison(connection: duckdb.DuckDBPyConnection) -> None:
    label(connection, "a")
    label(connection, "lookup", explainer="token_lookup")
    label(connection, "failed", draw=1, status="failed")
    assert rivals(connection) == {}
    assert chosen(connection) == {SAE: [(0, "a")]}


def test_of_candidates_the_best_on_select_is_scored(connection: duckdb.DuckDBPyConnection) -> None:
    for draw, name in enumerate("abc"):
        label(connection, name, draw=draw)
    label(connection, "other", feature=7)
    assert rivals(connection) == {SAE: [(0, "a"), (0, "b"), (0, "c")]}
    scored(connection, "a", "select", None)
    scored(connection, "b", "select", 0.7)
    scored(connection, "c", "select", 0.3, simulator="chat/another")
    assert rivals(connection) == {SAE: [(0, "c")]}
    scored(connection, "c", "select", 0.2)
    assert rivals(connection) == {}
    assert chosen(connection) == {SAE: [(0, "b"), (7, "other")]}
    scored(connection, "b", "score", None)
    assert chosen(connection) == {SAE: [(7, "other")]}
    assert connection.execute(
        "SELECT label_id FROM current_labels WHERE feature = 0"
    ).fetchall() == [("b",)]


def test_second_opinions_are_asked_about_the_chosen_and_once(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for draw, name in enumerate("ab"):
        label(connection, name, draw=draw)
        scored(connection, name, "select", draw / 10, simulator="chat_sparse/m")

    def missing(scorer: str) -> Rows:
        return chosen_to_score(connection, "chat_sparse/m", EMBEDDED, scorer, JUDGE)

    scored(connection, "b", "score", 0.5, simulator="chat_sparse/m")
    assert missing("detection") == missing("fuzzing") == {SAE: [(0, "b")]}
    scored(connection, "b", "score", 0.5, scorer="detection")
    assert missing("detection") == {}
    assert missing("fuzzing") == {SAE: [(0, "b")]}
    # An opinion is no score: a judge that has given one may still simulate.
    assert chosen(connection)[SAE] == [(0, "a")]
    scored(connection, "a", "score", 0.5, scorer="detection")
    assert chosen(connection)[SAE] == [(0, "a")]


def test_what_got_no_reply_is_forgotten_for_those_judges_only(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for feature, name in enumerate("abcd"):
        label(connection, name, feature)
        scored(connection, name, "score", None)
        scored(connection, name, "score", None, simulator="chat/another")
    connection.execute(
        """
        INSERT INTO simulations BY NAME SELECT unnest(['a', 'a', 'b']) AS label_id,
            unnest(['chat/m', 'chat/m', 'chat/m']) AS simulator, unnest([1, 2, 3]) AS window_id,
            'failed' AS status, unnest(['no reply: timeout', 'declined', 'declined']) AS reason
        """
    )
    scored(connection, "c", "score", None, scorer="detection")
    connection.execute(
        """UPDATE scores SET design = '{"failed": {"no reply: timeout": 3}}'
        WHERE label_id = 'c' AND scorer = 'detection'"""
    )
    assert forget_unrated(connection, [JUDGE], "no reply") == 2
    left = connection.execute(
        "SELECT simulator, string_agg(DISTINCT label_id, '' ORDER BY label_id) FROM scores "
        "GROUP BY simulator ORDER BY simulator"
    ).fetchall()
    assert left == [("chat/another", "abcd"), (JUDGE, "bd")]
    assert connection.execute("SELECT window_id FROM simulations").fetchall() == [(3,)]
    assert forget_unrated(connection, [JUDGE], "no reply") == 0


def test_of_each_explainer_one_is_scored_and_of_failures_one(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "a", explainer="highlighted")
    label(connection, "b", explainer="output")
    label(connection, "c", feature=1, status="failed")
    label(connection, "d", feature=1, status="failed", draw=1)
    assert rivals(connection) == {SAE: [(0, "a"), (0, "b")]}
    assert chosen(connection) == {SAE: [(0, "a"), (0, "b"), (1, "c")]}


def test_a_sample_of_scored_labels_is_paired_with_those_of_other_features(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    names = [f"label{feature}" for feature in range(30)]
    for feature, name in enumerate(names):
        label(connection, name, feature, text=f"words {feature % 29}")
        scored(connection, name, "score", None if feature == 3 else feature / 100)
    found = shuffled_labels(connection, JUDGE, 12)
    assert 10 <= len(found) <= 12
    for name, pair in found.items():
        assert (pair.label_id, f"label{pair.feature}") == (name, name)
        assert pair.other_text == f"words {pair.other_feature % 29}"
        assert pair.other_text != f"words {pair.feature % 29}"
        assert 3 not in (pair.feature, pair.other_feature)
    assert set(shuffled_labels(connection, JUDGE, 6)) < set(found)
    # What has been done is not done again.
    done = min(found)
    scored(connection, done, "score", None, scorer="shuffled_label")
    assert set(shuffled_labels(connection, JUDGE, 12)) == set(found) - {done}
    assert shuffled_labels(connection, "chat/another", 12) == {}
    drawn = labels_to_shuffle(connection, "highlighted", 5)
    assert len(drawn) == 5
    assert drawn < labels_to_shuffle(connection, "highlighted", 9)


def test_one_label_alone_has_no_other_to_be_exchanged_with(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "a")
    scored(connection, "a", "score", 0.5)
    assert shuffled_labels(connection, JUDGE, 20) == {}


def test_the_ladder_tells_labels_from_those_of_other_features(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for feature, name in enumerate("abc"):
        label(connection, name, feature)
        scored(connection, name, "score", 0.5 + feature / 10)
    scored(connection, "a", "select", 0.9)
    scored(connection, "a", "score", 0.1, scorer="shuffled_label")
    scored(connection, "b", "score", None, scorer="shuffled_label")
    assert read_null_ladder(connection) == (
        LadderRow("highlighted", JUDGE, 3, 0.6, None, 2, 1, 0.1, 3),
    )


def by_hand(
    connection: duckdb.DuckDBPyConnection, name: str, hour: int, status: str = "done"
) -> None:
    connection.execute(
        """
        INSERT INTO labels BY NAME SELECT $id AS label_id, $sae AS sae_id, 0 AS feature,
            $id AS text, 'human' AS explainer, '1' AS prompt_version, 0 AS draw,
            'human' AS source, 'ann' AS author, $status AS status,
            TIMESTAMPTZ '2026-11-22 00:00:00+00' + to_hours($hour) AS created_at
        """,
        {"id": name, "sae": SAE, "status": status, "hour": hour},
    )


def test_of_a_persons_labels_the_last_is_scored_and_none_compared(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "auto")
    by_hand(connection, "first", 1)
    by_hand(connection, "a later one", 2)
    assert rivals(connection) == {}
    assert chosen(connection) == {SAE: [(0, "a later one"), (0, "auto")]}


def test_a_label_that_was_taken_back_is_not_scored_nor_computed_again(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    by_hand(connection, "standing", 1)
    by_hand(connection, "taken back", 2, status="withdrawn")
    assert chosen(connection) == {SAE: [(0, "standing")]}
    for name in ("standing", "taken back"):
        scored(connection, name, "score", 0.5)
        scored(connection, name, "score", 0.5, scorer="detection")
    assert [each.label_id for each in scored_before(connection)] == ["standing"]
    assert opinions_before(connection, JUDGE, "detection") == {SAE: [(0, "standing")]}
