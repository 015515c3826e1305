"""Which labels are steered with, beside which features, on what text; and the scores read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from scopenote.store.absorb import absorb_results
from scopenote.store.current_features import refresh_current_features
from scopenote.store.parts import write_part
from scopenote.store.records import Score
from scopenote.store.scores import score_tables
from scopenote.store.steered_scores import (
    INTERVENTION,
    PROMOTED,
    count_to_tell_apart,
    labels_to_steer,
    labels_to_tell_apart,
    near_by_direction,
    prompt_windows,
    random_features,
    read_promoted,
)

from .made_up_run import FAILED, MLP, NEVER_ACTIVE, RES, WIDTH, make_database

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

JUDGE = "chat/m"


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with make_database() as connection:
        yield connection


def score(label_id: str, **more: Any) -> Score:
    usual = {
        "scorer": INTERVENTION, "simulator": "model/toy", "metric": PROMOTED, "split": "score",
        "value": 0.5, "n_windows": 3, "n_tokens": 48, "contexts_hash": "c",
        "design": {"promoted": [" é"], "norm": 2.5},
    }  # fmt: skip
    return Score(label_id, **{**usual, **more})


def store_scores(connection: duckdb.DuckDBPyConnection, folder: Any, *scores: Score) -> None:
    write_part(folder, f"score-{len(scores)}", "score", score_tables(scores, [], "r2"), {})
    absorb_results(connection, folder, "score")


def flat(found: dict[str, list[tuple[int, str]]]) -> list[tuple[str, int]]:
    return [(sae_id, feature) for sae_id, labels in found.items() for feature, _ in labels]


def test_more_features_have_the_fewer_among_them_and_all_have_a_label(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    few, more, every = (flat(labels_to_steer(connection, n)) for n in (5, 20, 1000))
    assert len(few) == 5
    assert set(few) < set(more) < set(every)
    assert len(every) == 2 * (WIDTH - 2)  # one never fires, one has a failed label
    assert not {NEVER_ACTIVE, FAILED} & {feature for _, feature in every}
    # Over all SAEs, not the first of the first.
    assert {sae_id for sae_id, _ in few} == {RES, MLP}
    assert labels_to_steer(connection, 0) == {}


def test_a_label_that_is_scored_is_not_steered_again_and_another_of_its_feature_is(
    connection: duckdb.DuckDBPyConnection, tmp_path: Any
) -> None:
    (sae_id, feature), *others = flat(labels_to_steer(connection, 5))
    store_scores(connection, tmp_path, score(f"{sae_id}:{feature}", value=None, reason="why"))
    assert flat(labels_to_steer(connection, 5)) == others
    connection.execute(
        "UPDATE labels SET label_id = label_id || 'x' WHERE sae_id = ? AND feature = ?",
        [sae_id, feature],
    )
    connection.execute("UPDATE meta SET value = 'another' WHERE key = 'revision'")
    refresh_current_features(connection, whole=True)
    assert flat(labels_to_steer(connection, 5)) == [(sae_id, feature), *others]


def test_a_judge_is_asked_once_about_labels_that_were_steered_with(
    connection: duckdb.DuckDBPyConnection, tmp_path: Any
) -> None:
    assert labels_to_tell_apart(connection, JUDGE) == {}
    assert count_to_tell_apart(connection, 5, JUDGE) == (5, 5)
    first, second = flat(labels_to_steer(connection, 5))[:2]
    names = [f"{sae_id}:{feature}" for sae_id, feature in (first, second)]
    store_scores(connection, tmp_path, *map(score, names))
    assert flat(labels_to_tell_apart(connection, JUDGE)) == [first, second]
    told = score(names[0], simulator=JUDGE, metric="told_apart")
    store_scores(connection, tmp_path, told)
    assert flat(labels_to_tell_apart(connection, JUDGE)) == [second]
    assert flat(labels_to_tell_apart(connection, "chat/another")) == [first, second]
    assert count_to_tell_apart(connection, 5, JUDGE) == (5, 4)
    assert count_to_tell_apart(connection, 1000, JUDGE) == (2 * (WIDTH - 2), 2 * (WIDTH - 2) - 1)


def test_scores_are_read_back_with_the_outputs_kept_of_them(
    connection: duckdb.DuckDBPyConnection, tmp_path: Any
) -> None:
    name = f"{RES}:3"
    stored = score(name)
    other = score(name, simulator=JUDGE, metric="told_apart", design={})
    store_scores(connection, tmp_path, stored, other)
    assert read_promoted(connection, [name, f"{RES}:4"]) == {name: stored}


def test_random_features_fire_and_fewer_are_the_first_of_more(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    every = random_features(connection, RES, 0, 1000)
    assert sorted(every) == [feature for feature in range(WIDTH) if feature != NEVER_ACTIVE]
    assert random_features(connection, RES, 0, 7) == every[:7]
    assert every != sorted(every)
    assert random_features(connection, RES, 1, 1000) != every
    assert random_features(connection, MLP, 0, 1000) != every


def test_near_features_are_those_by_direction(connection: duckdb.DuckDBPyConnection) -> None:
    near = near_by_direction(connection, RES, [0, 3])
    assert near[0] == {rank * rank % WIDTH for rank in range(1, 11)}
    assert set(near) == {0, 3}
    assert near_by_direction(connection, "another", [1]) == {1: frozenset()}


def test_prompts_are_equally_long_beginnings_of_background_windows_of_score(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    found = prompt_windows(connection, 8, 16)
    assert sorted(each.window_id for each in found) == [23, 26, 29]
    for each in found:
        ((ids,),) = connection.execute(
            "SELECT token_ids FROM windows WHERE window_id = ?", [each.window_id]
        ).fetchall()
        assert list(each.token_ids) == ids[:16]
    assert prompt_windows(connection, 2, 16) == found[:2]


def test_windows_that_are_too_short_or_begin_alike_are_left_out(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute("UPDATE windows SET token_ids = token_ids[1:5] WHERE window_id = 23")
    assert {each.window_id for each in prompt_windows(connection, 8, 16)} == {26, 29}
    connection.execute(
        "UPDATE windows SET token_ids = "
        "(SELECT token_ids[1:20] FROM windows WHERE window_id = 29) WHERE window_id = 26"
    )
    assert len(prompt_windows(connection, 8, 16)) == 1
    # Where none is long enough, they are as long as the longest.
    connection.execute("UPDATE windows SET token_ids = token_ids[1:6]")
    assert {len(each.token_ids) for each in prompt_windows(connection, 8, 16)} == {6}


def test_without_a_background_there_are_no_prompts(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("UPDATE windows SET is_background = false")
    assert prompt_windows(connection, 8, 16) == []
