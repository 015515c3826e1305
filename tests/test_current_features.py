"""A row for each feature is what the other tables say, also of what lies in the inbox."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.store.absorb import absorb_inbox, absorb_results
from scopenote.store.current_features import refresh_current_features
from scopenote.store.database import open_store, open_work, publish
from scopenote.store.facts import set_meta
from scopenote.store.feature_list import (
    FeatureQuery,
    Labelled,
    Order,
    Queue,
    Scored,
    count_queues,
    read_feature_list,
    read_feature_row,
)
from scopenote.store.inbox import Vote, WrittenLabel, write_to_inbox
from scopenote.store.labels import label_tables
from scopenote.store.parts import write_part
from scopenote.store.records import FeatureId, Label, Score
from scopenote.store.scores import score_tables

from .made_up_run import FAILED, MLP, NEVER_ACTIVE, RES, UNDEFINED, WIDTH, make_database

LATER = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with make_database() as connection:
        yield connection


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_database(tmp_path / "work.duckdb").close()
    with open_work(tmp_path) as work:
        set_meta(work, "revision", "made up")
        publish(work, tmp_path)
    return tmp_path


def add_opinions(connection: duckdb.DuckDBPyConnection) -> None:
    """Second opinions on all labels, drawn anew."""
    draw = random.Random(3)
    rows = connection.execute("SELECT label_id FROM labels WHERE status = 'done'").fetchall()
    for (label_id,) in rows:
        for scorer in ("detection", "fuzzing"):
            connection.execute(
                "INSERT INTO scores (label_id, scorer, simulator, metric, split, value) "
                "VALUES ($1, $2, 'judge', 'auroc_silent', 'score', $3)",
                [label_id, scorer, draw.random()],
            )
    set_meta(connection, "revision", "with opinions")
    assert refresh_current_features(connection)


def test_a_row_has_what_the_view_of_labels_in_force_has(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    shared = """
        sae_id, feature, label_id, text, explainer, model, source, author, created_at, simulator,
        score, score_reason, ci_low, ci_high, null_value, lift, lift_ci_low, lift_ci_high,
        score_stale_since
    """
    differing = connection.execute(
        f"""
        (SELECT {shared} FROM current_labels EXCEPT SELECT {shared} FROM current_features)
        UNION ALL (SELECT {shared} FROM current_features WHERE label_id IS NOT NULL
                   EXCEPT SELECT {shared} FROM current_labels)
        """
    ).fetchall()
    assert differing == []
    (counts,) = connection.execute(
        "SELECT count(*), count(DISTINCT (sae_id, feature)), count(label_id) FROM current_features"
    ).fetchall()
    assert counts == (2 * WIDTH, 2 * WIDTH, 2 * (WIDTH - 2))


def test_a_feature_without_a_label_says_why(connection: duckdb.DuckDBPyConnection) -> None:
    row = read_feature_row(connection, FeatureId(RES, FAILED))
    assert row is not None
    assert (row.label_id, row.failure, row.n_failed) == (None, "never active in explain", 1)
    silent = read_feature_row(connection, FeatureId(RES, NEVER_ACTIVE))
    assert silent is not None
    assert (silent.n_active, silent.label_id, silent.failure) == (0, None, None)
    assert read_feature_row(connection, FeatureId(RES, WIDTH)) is None


def test_labels_that_say_the_same_are_counted_within_their_sae(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for feature, text in (
        (1, "Names of  cities"),
        (2, " names of cities"),
        (3, "names of\ncities"),
    ):
        connection.execute(
            "UPDATE labels SET text = $1 WHERE sae_id = $2 AND feature = $3", [text, RES, feature]
        )
    connection.execute(
        "UPDATE labels SET text = 'names of cities' WHERE sae_id = $1 AND feature = 4", [MLP]
    )
    set_meta(connection, "revision", "other texts")
    refresh_current_features(connection)
    counts = [read_feature_row(connection, FeatureId(RES, n)) for n in (1, 2, 3)]
    assert [row and row.n_same for row in counts] == [2, 2, 2]
    other = read_feature_row(connection, FeatureId(MLP, 4))
    assert other is not None and other.n_same == 0


def test_scorers_disagree_by_the_distance_of_their_orders(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    add_opinions(connection)
    for sae_id in (RES, MLP):
        rows = connection.execute(
            """
            SELECT feature, score, avg(s.value), disagreement
            FROM current_features JOIN scores s USING (label_id)
            WHERE sae_id = $1 AND score IS NOT NULL AND s.scorer IN ('detection', 'fuzzing')
            GROUP BY ALL
            """,
            [sae_id],
        ).fetchall()
        assert len(rows) == WIDTH - 3

        def place(of: list[tuple[Any, ...]], row: tuple[Any, ...], column: int) -> float:
            return sum(each[column] < row[column] for each in of) / (len(of) - 1)

        for row in rows:
            assert row[3] == pytest.approx(abs(place(rows, row, 1) - place(rows, row, 2)))


def test_nothing_is_made_anew_while_the_state_is_the_same(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    set_meta(connection, "revision", "one")
    assert refresh_current_features(connection)
    assert not refresh_current_features(connection)
    set_meta(connection, "revision", "two")
    assert refresh_current_features(connection)


def written(feature: int, text: str, sae_id: str = RES) -> WrittenLabel:
    label = Label(
        feature_id=FeatureId(sae_id, feature),
        text=text,
        explanation=None,
        explainer="human",
        prompt_version="1",
        window_ids=(),
        source="human",
        author="ada",
    )
    return WrittenLabel.of(label, LATER, saw_score=True)


def test_what_lies_in_the_inbox_counts_at_once(run: Path) -> None:
    with open_store(run) as store:
        before = read_feature_list(store.connection, FeatureQuery(order=Order.SCORE))
        alike = read_feature_row(store.connection, FeatureId(RES, 9))
        assert alike is not None and alike.text is not None
    own = written(3, f"  {alike.text} ".upper())
    write_to_inbox(run / "inbox", labels=[own], votes=[Vote(own.label_id, "bob", 1, LATER)])
    with open_store(run) as store, store.cursor() as cursor:
        row = read_feature_row(cursor, FeatureId(RES, 3))
        assert row is not None
        assert (row.label_id, row.source, row.author) == (own.label_id, "human", "ada")
        assert (row.score, row.n_up, row.n_down) == (None, 1, 0)
        assert row.n_same >= 1
        after = read_feature_list(cursor, FeatureQuery(order=Order.SCORE))
        assert after.n == before.n
        assert read_feature_list(cursor, FeatureQuery(labelled=Labelled.HUMAN)).rows == (row,)
        saw = cursor.execute("SELECT saw_score FROM labels WHERE source = 'human'").fetchall()
        assert saw == [(True,)]


def test_a_label_taken_back_leaves_what_was_in_force_before(run: Path) -> None:
    with open_store(run) as store:
        before = read_feature_row(store.connection, FeatureId(RES, 3))
    own = written(3, "mine")
    later = replace(own, status="withdrawn", created_at=LATER.replace(hour=1))
    write_to_inbox(run / "inbox", labels=[own])
    write_to_inbox(run / "inbox", labels=[later])
    with open_store(run) as store:
        assert read_feature_row(store.connection, FeatureId(RES, 3)) == before


def matches(row: Any, query: FeatureQuery) -> bool:
    """Whether a row is in a list, the slow way."""

    def within(value: float | None, low: float | None, high: float | None) -> bool:
        if low is None and high is None:
            return True
        return (
            value is not None and (low is None or value >= low) and (high is None or value <= high)
        )

    return (
        all(word.lower() in (row.text or "").lower() for word in query.text.split())
        and row.sae_id.startswith(query.sae)
        and query.explainer in ("", row.explainer)
        and query.site in row.sae_id
        and query.layer in (None, 1)
        and query.reason in ("", row.score_reason)
        and query.failure in ("", row.failure)
        and (row.failure is not None or not query.failed)
        and {
            Scored.ANY: True,
            Scored.YES: row.score is not None,
            Scored.UNDEFINED: row.score_reason is not None,
            Scored.NO: row.label_id is not None and row.score is None and not row.score_reason,
        }[query.scored]
        and within(row.score, query.min_score, query.max_score)
        and within(row.density, query.min_density, query.max_density)
        and within(row.lift, query.min_lift, None)
        and within(row.disagreement, query.min_disagreement, None)
        and {
            Labelled.ANY: True,
            Labelled.YES: row.label_id is not None,
            Labelled.NO: row.label_id is None,
        }.get(query.labelled, row.source == query.labelled)
    )


@pytest.mark.parametrize(
    "query",
    [
        FeatureQuery(),
        FeatureQuery(text="import CLASS"),
        FeatureQuery(text="' OR 1=1 --"),
        FeatureQuery(sae=RES),
        FeatureQuery(sae="toy-gemma-2/1-m", order=Order.DENSITY),
        FeatureQuery(min_score=0.3, max_score=0.6, order=Order.SCORE),
        FeatureQuery(min_density=0.01, order=Order.PEAK, reverse=True),
        FeatureQuery(min_lift=0.0),
        FeatureQuery(min_disagreement=0.3),
        FeatureQuery(labelled=Labelled.NO),
        FeatureQuery(labelled=Labelled.AUTO, explainer="token_lookup", order=Order.LABEL),
        FeatureQuery(order=Order.SCORE, page=2),
        FeatureQuery(page=99),
        FeatureQuery(site="mlp", layer=1),
        FeatureQuery(layer=2),
        FeatureQuery(scored=Scored.YES),
        FeatureQuery(scored=Scored.UNDEFINED),
        FeatureQuery(scored=Scored.NO),
        FeatureQuery(reason="too few active tokens"),
        FeatureQuery(failed=True),
        FeatureQuery(failure="never active in explain"),
    ],
)
def test_a_list_is_what_a_person_would_pick_and_sort(
    connection: duckdb.DuckDBPyConnection, query: FeatureQuery
) -> None:
    add_opinions(connection)
    every = [
        row
        for page in (1, 2)
        for row in read_feature_list(connection, FeatureQuery(page=page)).rows
    ]
    assert len(every) == 2 * WIDTH
    expected = [row for row in every if matches(row, query)]
    found = read_feature_list(connection, query)
    assert found.n == len(expected)
    assert found.n_pages == max(1, -(-len(expected) // 50))
    value = {
        Order.SCORE: lambda row: row.score,
        Order.DENSITY: lambda row: row.density,
        Order.PEAK: lambda row: row.max_activation,
        Order.LABEL: lambda row: None if row.text is None else row.text.lower(),
    }.get(query.order or Order.FEATURE, lambda row: "")
    is_falling = query.order in (Order.SCORE, Order.DENSITY, Order.PEAK) and not query.reverse
    has_value = sorted(
        (row for row in expected if value(row) is not None), key=value, reverse=is_falling
    )
    has_none = [row for row in expected if value(row) is None]
    page = [*has_value, *has_none][50 * (query.page - 1) : 50 * query.page]
    assert [value(row) for row in found.rows] == [value(row) for row in page]
    assert {row.feature_id for row in found.rows} <= {row.feature_id for row in expected}


def test_queues_hold_what_their_names_say(connection: duckdb.DuckDBPyConnection) -> None:
    add_opinions(connection)
    lists = {queue: read_feature_list(connection, FeatureQuery(queue=queue)) for queue in Queue}
    assert {queue: found.n for queue, found in lists.items()} == count_queues(connection)
    worst = [row.score for row in lists[Queue.WORST].rows]
    assert None not in worst and worst == sorted(worst)
    assert all(row.feature not in (NEVER_ACTIVE, UNDEFINED) for row in lists[Queue.WORST].rows)
    assert {row.feature for row in lists[Queue.UNLABELLED].rows} == {FAILED}
    apart = [row.disagreement or 0 for row in lists[Queue.DISAGREEING].rows]
    assert apart == sorted(apart, reverse=True) and apart[0] > 0.5
    assert all(row.n_same > 0 for row in lists[Queue.COLLIDING].rows)
    assert lists[Queue.STALE].n == 0


def absorb_labels(run: Path, features: tuple[int, ...], draw: int, text: str) -> None:
    """Labels of these features as a run absorbs them, with scores that are above all others."""
    labels = [
        Label(FeatureId(RES, feature), text, None, "model", "1", (), draw=draw)
        for feature in features
    ]
    scores = [
        Score(each.label_id, "simulation", "judge", "correlation", split, 0.999)
        for each in labels
        for split in ("select", "score")
    ]
    with open_work(run) as work:
        for stage, tables in (
            ("explain", label_tables(labels, "r3", LATER)),
            ("score", score_tables(scores, [], "r3")),
        ):
            write_part(run / "parts", f"{stage}-{draw}", stage, tables, {})
            assert absorb_results(work, run / "parts", stage) == 1


# What compares a label with all others, which waits until all rows are made anew.
COMPARED = "disagreement, n_same"


def all_rows(run: Path, table: str, without: str = COMPARED) -> list[tuple[Any, ...]]:
    with open_work(run) as work:
        columns = f"* EXCLUDE ({without})" if table == "current_features" else "*"
        return work.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()


def test_rows_of_what_was_absorbed_are_those_that_making_all_anew_gives(run: Path) -> None:
    (run / "parts").mkdir()
    for draw, features in enumerate([(1, 2, FAILED), (2, 3), ()]):
        absorb_labels(run, features, draw, f"text {draw}")
        with open_work(run) as work:
            assert refresh_current_features(work)
            noted = work.execute("SELECT count(*) FROM touched_features").fetchall()
            assert noted == [(0,)]
    some = {table: all_rows(run, table) for table in ("current_features", "headlines")}
    with open_work(run) as work:
        row = read_feature_row(work, FeatureId(RES, 2))
        assert row is not None and row.text in ("text 0", "text 1") and row.score == 0.999
        alike = [read_feature_row(work, FeatureId(RES, feature)) for feature in (1, 2, 3)]
        assert refresh_current_features(work, whole=True)
        assert not refresh_current_features(work, whole=True)
        # Of the rows that were made anew last the comparison with all others is right as well.
        assert [read_feature_row(work, FeatureId(RES, feature)) for feature in (2, 3)] == alike[1:]
    assert {table: all_rows(run, table) for table in some} == some


def test_only_the_rows_that_changed_are_made_anew_while_a_run_is_at_work(run: Path) -> None:
    (run / "parts").mkdir()
    with open_work(run) as work:
        # A mark that only making all rows anew would remove.
        work.execute("UPDATE current_features SET author = 'mark' WHERE sae_id = $1", [MLP])
    absorb_labels(run, (1,), 0, "new")
    with open_work(run) as work:
        publish(work, run)
        marked = "SELECT count(*) FROM current_features WHERE author = 'mark'"
        assert work.execute(marked).fetchall() == [(WIDTH,)]
        refresh_current_features(work, whole=True)
        assert work.execute(marked).fetchall() == [(0,)]


def test_what_changed_without_being_noted_has_all_rows_made_anew(run: Path) -> None:
    (run / "parts").mkdir()
    with open_work(run) as work:
        work.execute("UPDATE labels SET text = 'by hand' WHERE feature = 8")
        set_meta(work, "revision", "somebody else's")
    absorb_labels(run, (1,), 0, "new")
    with open_work(run) as work:
        refresh_current_features(work)
        row = read_feature_row(work, FeatureId(RES, 8))
        assert row is not None and row.text == "by hand"


def test_labels_by_people_that_are_absorbed_count(run: Path) -> None:
    own = written(3, "mine")
    write_to_inbox(run / "inbox", labels=[own], votes=[Vote(own.label_id, "bob", -1, LATER)])
    with open_work(run) as work:
        assert absorb_inbox(work, run / "inbox") == 1
        refresh_current_features(work)
        row = read_feature_row(work, FeatureId(RES, 3))
        assert row is not None
        assert (row.text, row.author, row.n_down) == ("mine", "ada", 1)
