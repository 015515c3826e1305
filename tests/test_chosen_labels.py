"""Which labels a judge has still to compare, and which of them it is to score: from the tables."""

from __future__ import annotations

import duckdb
import pytest
from scopenote.store.schema import MIGRATIONS
from scopenote.store.scores import chosen_to_score, rivals_to_select_from

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
    explainer: str = "highlighted",
    draw: int = 0,
    status: str = "done",
) -> None:
    row = {
        "id": name,
        "sae": SAE,
        "feature": feature,
        "explainer": explainer,
        "draw": draw,
        "status": status,
    }
    connection.execute(
        """
        INSERT INTO labels BY NAME SELECT $id AS label_id, $sae AS sae_id, $feature AS feature,
            'words' AS text, $explainer AS explainer, '1' AS prompt_version, 'gpt' AS model,
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
) -> None:
    connection.execute(
        """
        INSERT INTO scores BY NAME SELECT $id AS label_id, 'simulation' AS scorer,
            $simulator AS simulator, 'correlation' AS metric, $split AS split, $value AS value,
            0 AS n_windows, 0 AS n_tokens, '{}' AS design, '' AS contexts_hash, 'r' AS run_id
        """,
        {"id": name, "simulator": simulator, "split": split, "value": value},
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


def test_of_each_explainer_one_is_scored_and_of_failures_one(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "a", explainer="highlighted")
    label(connection, "b", explainer="output")
    label(connection, "c", feature=1, status="failed")
    label(connection, "d", feature=1, status="failed", draw=1)
    assert rivals(connection) == {SAE: [(0, "a"), (0, "b")]}
    assert chosen(connection) == {SAE: [(0, "a"), (0, "b"), (1, "c")]}
