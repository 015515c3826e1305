"""Scores that newer text has overtaken are marked, and only those."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from scopenote.store.schema import MIGRATIONS
from scopenote.store.stale_scores import mark_stale, note_windows

SAE = "toy-gemma-2/1-res-1k"
JUDGE = "chat/gpt-4o-mini"
# Windows 1 and 2 are contexts of features 7 and 8, window 3 is background.
KEPT, DROPPED, BACKGROUND = 1, 2, 3
OF_DROPPED, OF_KEPT = "label of 8", "label of 7"


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        for migration in MIGRATIONS:
            connection.execute(migration.sql)
        for window, is_background in ((KEPT, False), (DROPPED, False), (BACKGROUND, True)):
            connection.execute(
                "INSERT INTO windows (window_id, split, is_background) VALUES ($1, 'score', $2)",
                [window, is_background],
            )
        for feature, window, label in ((7, KEPT, OF_KEPT), (8, DROPPED, OF_DROPPED)):
            connection.execute(
                "INSERT INTO contexts (sae_id, feature, split, kind, rank, window_id) "
                "VALUES ($1, $2, 'score', 'top', 1, $3)",
                [SAE, feature, window],
            )
            connection.execute(
                "INSERT INTO labels (label_id, sae_id, feature, explainer, draw, status) "
                "VALUES ($1, $2, $3, 'highlighted', 0, 'done')",
                [label, SAE, feature],
            )
            for simulated in (window, BACKGROUND):
                connection.execute(
                    "INSERT INTO simulations (label_id, scorer, simulator, window_id) "
                    "VALUES ($1, 'simulation', $2, $3)",
                    [label, JUDGE, simulated],
                )
            for scorer, simulator, split in (
                ("simulation", JUDGE, "score"),
                ("simulation", JUDGE, "select"),
                ("detection", JUDGE, "score"),
                # Of what the model does: on no window that could be dropped.
                ("intervention", JUDGE, "score"),
                ("intervention", "model/toy-gemma-2", "score"),
                ("shuffled_label", "chat/another", "score"),
                ("simulation", "token_lookup", "score"),
            ):
                connection.execute(
                    "INSERT INTO scores (label_id, scorer, simulator, metric, split) "
                    "VALUES ($1, $2, $3, 'correlation', $4)",
                    [label, scorer, simulator, split],
                )
        yield connection


def stale(connection: duckdb.DuckDBPyConnection) -> set[tuple[str, str, str, str]]:
    return set(
        connection.execute(
            "SELECT label_id, scorer, simulator, split FROM scores WHERE stale_since IS NOT NULL"
        ).fetchall()
    )


ALWAYS = {(label, "simulation", "token_lookup", "score") for label in (OF_KEPT, OF_DROPPED)}


def test_what_was_judged_on_dropped_windows_is_stale_and_its_second_opinions(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    note_windows(connection)
    connection.execute("DELETE FROM contexts WHERE window_id = $1", [DROPPED])
    connection.execute("DELETE FROM windows WHERE window_id = $1", [DROPPED])
    mark_stale(connection)
    assert stale(connection) == ALWAYS | {
        (OF_DROPPED, "simulation", JUDGE, "score"),
        (OF_DROPPED, "detection", JUDGE, "score"),
    }


def test_where_all_windows_are_kept_only_the_lookup_is_stale(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    note_windows(connection)
    mark_stale(connection)
    assert stale(connection) == ALWAYS


def test_a_background_window_that_is_no_longer_one_makes_stale_what_it_was_judged_on(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    note_windows(connection)
    connection.execute("DELETE FROM windows WHERE window_id = $1", [BACKGROUND])
    mark_stale(connection)
    judged = {(label, scorer, JUDGE, "score")
        for label in (OF_KEPT, OF_DROPPED) for scorer in ("simulation", "detection")}  # fmt: skip
    assert stale(connection) == ALWAYS | judged


def test_what_screens_saw_does_not_count(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("UPDATE simulations SET scorer = 'screen' WHERE window_id = $1", [DROPPED])
    note_windows(connection)
    connection.execute("DELETE FROM contexts WHERE window_id = $1", [DROPPED])
    mark_stale(connection)
    assert stale(connection) == ALWAYS


def test_the_moment_stays_that_of_the_first_time(connection: duckdb.DuckDBPyConnection) -> None:
    note_windows(connection)
    mark_stale(connection)
    first = connection.execute("SELECT max(stale_since) FROM scores").fetchone()
    note_windows(connection)
    mark_stale(connection)
    assert connection.execute("SELECT max(stale_since) FROM scores").fetchone() == first
