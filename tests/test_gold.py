"""What judges made of gold items, kept run by run in a real database, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from scopenote.store.gold import (
    CHANGED,
    FIRST_RUN,
    LEAST_CHANGE,
    LOST,
    TOO_FEW_PAIRS,
    GoldScore,
    ItemMean,
    compare_judges,
    find_change,
    gold_table,
    n_gold_runs,
    read_gold,
)
from scopenote.store.schema import MIGRATIONS

JUDGE, OTHER = "chat/m", "chat_sparse/m"
ITEMS = [f"item {number}" for number in range(8)]
HEIGHTS = [0.95, 0.9, 0.4, 0.7, 0.85, 0.6, 1.0, 0.8]
# Of one run against another; they sum up to 0.
NOISE = [0.03, -0.03, 0.02, -0.02, 0.01, -0.01, 0.0, 0.0]
BEGAN = datetime(2026, 11, 22, 5, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(tmp_path / "some.duckdb"))
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    return connection


def gold(
    values: list[float | None], simulator: str = JUDGE, version: str = "v1", n_failed: int = 0
) -> list[GoldScore]:
    return [
        GoldScore(
            simulator=simulator,
            gold_version=version,
            item=item,
            value=value,
            reason=None if value is not None else "the predicted activation is the same",
            wrong_value=0.02,
            wrong_reason=None,
            n_windows=12,
            n_failed=n_failed,
            failures={"no reply": n_failed} if n_failed else {},
            silent_mean=0.01,
            captured_mass=0.9,
        )
        for item, value in zip(ITEMS, values, strict=True)
    ]


def add(
    connection: duckdb.DuckDBPyConnection, scores: list[GoldScore], number: int, folder: Path
) -> None:
    """Absorbs a run, by way of a file as a part has it."""
    file = folder / f"{number}-{scores[0].simulator.replace('/', '-')}.parquet"
    pq.write_table(gold_table(scores, f"run {number}", BEGAN + timedelta(days=number)), file)
    connection.execute(f"INSERT INTO gold_scores BY NAME SELECT * FROM read_parquet('{file}')")


def moved(by: float, noise: float = 0.0) -> list[float | None]:
    return [height + by + noise * small for height, small in zip(HEIGHTS, NOISE, strict=True)]


def as_values(values: list[float | None]) -> Mapping[str, float | None]:
    return dict(zip(ITEMS, values, strict=True))


def test_the_first_run_stands_alone(database: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    add(database, gold([*HEIGHTS[:7], None]), 0, tmp_path)
    (standing,) = read_gold(database)
    assert (standing.simulator, standing.gold_version, standing.run_id) == (JUDGE, "v1", "run 0")
    assert standing.scored_at == BEGAN
    assert (standing.true.n, standing.true.n_undefined) == (7, 1)
    assert standing.true.mean == pytest.approx(sum(HEIGHTS[:7]) / 7)
    assert standing.wrong.mean == pytest.approx(0.02)
    assert (standing.n_windows, standing.n_failed) == (96, 0)
    assert standing.silent_mean == pytest.approx(0.01)
    assert standing.captured_mass == pytest.approx(0.9)
    assert (standing.drift.is_beyond_chance, standing.drift.reason) == (None, FIRST_RUN)


def test_the_latest_run_is_compared_with_all_before_it(
    database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    for number, by in enumerate((0.02, -0.02, -0.2)):
        add(database, gold(moved(by, noise=1)), number, tmp_path)
    (standing,) = read_gold(database)
    assert standing.run_id == "run 2"
    assert standing.drift.n_runs == 2
    assert standing.drift.before.mean == pytest.approx(sum(HEIGHTS) / 8)
    assert standing.drift.mean == pytest.approx(-0.2)
    assert (standing.drift.is_beyond_chance, standing.drift.reason) == (True, CHANGED)


def test_runs_with_other_versions_of_the_items_are_not_compared(
    database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    add(database, gold(moved(0.0)), 0, tmp_path)
    add(database, gold(moved(-0.3), version="v2"), 1, tmp_path)
    (standing,) = read_gold(database)
    assert (standing.gold_version, standing.drift.reason) == ("v2", FIRST_RUN)
    assert n_gold_runs(database, JUDGE) == 2


def test_judges_are_read_by_name_and_compared_item_by_item(
    database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    add(database, gold(moved(-0.1, noise=1), OTHER), 0, tmp_path)
    add(database, gold(moved(0.0)), 0, tmp_path)
    assert [standing.simulator for standing in read_gold(database)] == [JUDGE, OTHER]
    difference = compare_judges(database, JUDGE, OTHER)
    assert difference is not None
    assert difference.mean == pytest.approx(0.1)
    assert difference.is_beyond_chance
    assert compare_judges(database, JUDGE, "chat/nobody") is None
    add(database, gold(moved(0.0), OTHER, "v2"), 3, tmp_path)
    assert compare_judges(database, JUDGE, OTHER) is None


def test_a_judge_has_as_many_runs_as_asked_it(
    database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    assert n_gold_runs(database, JUDGE) == 0
    add(database, gold(moved(0.0)), 0, tmp_path)
    add(database, gold(moved(0.0)), 1, tmp_path)
    add(database, gold(moved(0.0), OTHER), 1, tmp_path)
    assert (n_gold_runs(database, JUDGE), n_gold_runs(database, OTHER)) == (2, 1)


def test_a_database_without_the_table_has_no_judges() -> None:
    older = duckdb.connect()
    assert read_gold(older) == ()
    assert n_gold_runs(older, JUDGE) == 0
    assert compare_judges(older, JUDGE, OTHER) is None


def test_reasons_and_failures_are_kept(database: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    add(database, gold([None] * 8, n_failed=12), 0, tmp_path)
    rows = database.sql("SELECT DISTINCT value, reason, n_failed, failures FROM gold_scores")
    assert rows.fetchall() == [
        (None, "the predicted activation is the same", 12, '{"no reply": 12}')
    ]


def test_scores_that_only_waver_have_not_changed() -> None:
    change = find_change(as_values(moved(0.005, noise=1)), [as_values(moved(0.0))])
    assert (change.is_beyond_chance, change.reason) == (False, None)
    assert change.most_changed == "item 0"
    assert change.most_change == pytest.approx(0.035)


def test_a_sure_change_that_is_too_small_to_matter_is_none() -> None:
    before = [as_values(moved(0.0))]
    assert not find_change(as_values(moved(0.9 * LEAST_CHANGE)), before).is_beyond_chance
    assert find_change(as_values(moved(1.1 * LEAST_CHANGE)), before).is_beyond_chance


def test_one_item_that_broke_is_named_though_the_mean_has_not_changed_for_sure() -> None:
    broken = moved(0.0)
    broken[3] = 0.0
    change = find_change(as_values(broken), [as_values(moved(0.0))])
    assert not change.is_beyond_chance
    assert (change.most_changed, change.most_change) == ("item 3", pytest.approx(-0.7))


def test_a_judge_that_falls_silent_has_changed() -> None:
    before = [as_values(moved(0.0))] * 2
    assert find_change(as_values([None] * 8), before).reason == LOST
    half = find_change(as_values([None] * 4 + HEIGHTS[4:]), before)
    assert (half.is_beyond_chance, half.reason) == (True, LOST)
    few = find_change(as_values([None] * 2 + HEIGHTS[2:]), before)
    assert (few.is_beyond_chance, few.reason) == (False, None)


def test_items_whose_windows_failed_say_nothing_of_change(
    database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    add(database, gold(moved(0.0)), 0, tmp_path)
    add(database, gold([None] * 8, n_failed=12), 1, tmp_path)
    (standing,) = read_gold(database)
    assert standing.true.n_undefined == 8
    assert (standing.drift.is_beyond_chance, standing.drift.reason) == (None, TOO_FEW_PAIRS)


def test_with_few_items_in_common_nothing_is_said() -> None:
    now = dict(list(as_values(moved(-0.5)).items())[:4])
    change = find_change(now, [as_values(moved(0.0))])
    assert (change.is_beyond_chance, change.reason) == (None, TOO_FEW_PAIRS)
    assert change.mean == pytest.approx(-0.5)


def test_a_mean_says_over_how_many_items_it_is_taken() -> None:
    assert ItemMean.of([0.5, None, 1.0]) == ItemMean(2, 1, 0.75, 0.25)
    assert ItemMean.of([0.5]) == ItemMean(1, 0, 0.5, None)
    assert ItemMean.of([None]) == ItemMean(0, 1, None, None)
