"""What is to be labelled and why, by the tables alone."""

from __future__ import annotations

import duckdb
import pytest
from scopenote.flows.label_plan import LabelPlan, WantedLabel, share_changed
from scopenote.store.facts import set_meta
from scopenote.store.schema import MIGRATIONS
from scopenote.store.wanted_labels import (
    LowScores,
    Proposer,
    Shown,
    Why,
    newest_shown,
    standings,
    wanted_draws,
)

SAE = "toy/1-res"
BY = Proposer("highlighted", "2", "gpt")
LOW = LowScores(below=0.5, candidates=3)


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    connection.executemany("INSERT INTO features (sae_id, feature) VALUES (?, ?)", [(SAE, 0)])
    set_meta(connection, "merged_part", "text-1")
    return connection


def label(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    version: str = "2",
    draw: int = 0,
    generation: int = 0,
    text: str | None = "text-1",
    windows: tuple[int, ...] = (1, 2),
    select: float | None = None,
    status: str = "done",
) -> None:
    connection.execute(
        """
        INSERT INTO labels BY NAME SELECT $id AS label_id, $sae AS sae_id, 0 AS feature,
            'highlighted' AS explainer, $version AS prompt_version, 'gpt' AS model, $draw AS draw,
            $status AS status, $generation AS generation, $text AS text_state
        """,
        {
            "id": name,
            "sae": SAE,
            "version": version,
            "draw": draw,
            "status": status,
            "generation": generation,
            "text": text,
        },
    )
    for window in windows:
        connection.execute("INSERT INTO label_contexts VALUES (?, ?)", [name, window])
    if select is not None:
        connection.execute(
            """
            INSERT INTO scores BY NAME SELECT $id AS label_id, 'simulation' AS scorer,
                'chat/gpt' AS simulator, 'correlation' AS metric, 'select' AS split, $x AS value
            """,
            {"id": name, "x": select},
        )


def why(connection: duckdb.DuckDBPyConnection, n_draws: int = 1) -> Why | str | None:
    found = standings(connection, BY, n_draws, LOW)
    return found[0].why if found else "nothing"


def test_a_feature_that_nobody_has_seen_has_no_label(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    assert why(connection) == Why.NO_LABEL


def test_a_labelled_feature_is_left(connection: duckdb.DuckDBPyConnection) -> None:
    label(connection, "a")
    assert standings(connection, BY) == []


def test_labels_by_an_older_version_only_are_made_again(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "a", version="1")
    assert why(connection) == Why.OLDER
    label(connection, "b")
    assert why(connection) == "nothing"


def test_a_draw_that_is_missing_is_made(connection: duckdb.DuckDBPyConnection) -> None:
    label(connection, "a")
    assert why(connection, n_draws=2) == Why.NO_LABEL
    shown = newest_shown(connection, BY, SAE, [0])[0]
    assert wanted_draws(shown, Why.NO_LABEL, 2) == (0, [1])


def test_where_text_has_grown_contexts_may_have_changed(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "a")
    set_meta(connection, "merged_part", "text-2")
    (standing,) = standings(connection, BY)
    assert (standing.why, standing.may_have_changed) == (None, True)
    shown = newest_shown(connection, BY, SAE, [0])[0]
    assert shown.window_ids == {1, 2}
    assert wanted_draws(shown, Why.CHANGED, 2) == (0, [1])  # the first generation goes first
    assert wanted_draws(shown, Why.CHANGED, 1) == (1, range(1))


def test_only_the_newest_generation_counts(connection: duckdb.DuckDBPyConnection) -> None:
    label(connection, "a", windows=(1,), text="text-0")
    label(connection, "b", windows=(2, 3), generation=1)
    assert standings(connection, BY) == []
    assert newest_shown(connection, BY, SAE, [0])[0].window_ids == {2, 3}
    # It was begun, and then the run died.
    assert why(connection, n_draws=2) == Why.CHANGED
    assert wanted_draws(newest_shown(connection, BY, SAE, [0])[0], Why.CHANGED, 2) == (1, [1])


def test_low_scores_get_one_more_candidate_up_to_a_number(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    label(connection, "a", select=0.2)
    assert why(connection) == Why.LOW
    assert wanted_draws(newest_shown(connection, BY, SAE, [0])[0], Why.LOW, 1) == (0, (1,))
    label(connection, "b", draw=1)
    assert why(connection) == "nothing"  # it may be the better one
    label(connection, "c", draw=2, status="failed")
    connection.execute("DELETE FROM labels WHERE label_id = 'b'")
    assert why(connection) == Why.LOW
    label(connection, "d", draw=3, select=0.4)
    assert why(connection) == "nothing"  # three are enough


def test_one_good_label_is_enough(connection: duckdb.DuckDBPyConnection) -> None:
    label(connection, "a", select=0.2)
    label(connection, "b", draw=1, select=0.6)
    assert why(connection) == "nothing"


def test_an_undefined_score_is_not_a_low_one(connection: duckdb.DuckDBPyConnection) -> None:
    label(connection, "a")
    connection.execute(
        """
        INSERT INTO scores BY NAME SELECT 'a' AS label_id, 'simulation' AS scorer, 'x' AS simulator,
            'correlation' AS metric, 'select' AS split, NULL AS value, 'constant' AS reason
        """
    )
    assert why(connection) == "nothing"


@pytest.mark.parametrize(
    ("before", "now", "share"),
    [((1, 2), (1, 2), 0), ((1, 2), (2, 3), 0.5), ((), (1,), 1), ((), (), 0), ((1,), (), 1)],
)
def test_the_share_of_contexts_that_are_new(
    before: tuple[int, ...], now: tuple[int, ...], share: float
) -> None:
    shown = Shown(0, ("a",), frozenset({0}), frozenset(before), False)
    assert share_changed(shown, now) == share


def test_contexts_that_had_not_fitted_do_not_count_as_new() -> None:
    shown = Shown(0, ("a",), frozenset({0}), frozenset({1, 2}), True)
    assert share_changed(shown, (1, 2, 3, 4)) == 0
    assert share_changed(shown, (1, 3, 2, 4)) == 0.5


def test_a_plan_says_what_it_is_and_can_be_cut() -> None:
    wanted = [
        WantedLabel(Why.NO_LABEL, "highlighted", SAE, 4),
        WantedLabel(Why.NO_LABEL, "highlighted", SAE, 2),
        WantedLabel(Why.CHANGED, "highlighted", SAE, 3, 0.5),
    ]
    plan = LabelPlan(wanted)
    assert str(plan) == (
        "features to ask a model about: 2 have no label, "
        "1 have other contexts since they were labelled"
    )
    assert next(iter(plan.groups())) == (Why.NO_LABEL, "highlighted", {SAE: [2, 4]})
    now, later = plan.split(2)
    assert [*now.wanted, *later.wanted] == wanted
    assert len(now.wanted) == 2
    everything, nothing = plan.split(None)
    assert (list(everything.wanted), list(nothing.wanted)) == (wanted, [])
