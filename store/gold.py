"""What judges made of gold items, run by run: how good each is, and whether it has changed.

A judge may change without a word, since what stands behind a model's name is the provider's. So
each run that asks it asks the same gold questions again, and is compared with the runs before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from .near_features import read_rows

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# With fewer items in common the difference between two runs is left to the eye.
MIN_PAIRS = 5
# Of a correlation: a smaller change of the mean is of no consequence, however sure.
LEAST_CHANGE = 0.02
TOO_FEW_PAIRS = f"fewer than {MIN_PAIRS} items have a score now and had one before"
FIRST_RUN = "there is no earlier run with these items"
CHANGED = "the scores have changed by more than chance would"
LOST = "half of the items that always had a score have none"
# By the number of items, how many standard errors a mean difference may lie from 0: 99 in 100
# would lie nearer (Student's t). Three standard errors, but for the few items that there are.
_MOST_ERRORS = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250, 11: 3.169, 12: 3.106}
_MOST_ERRORS_OF_MANY = 3.0

Values = Mapping[str, float | None]
"""By item, its score; None where the judge gave nothing to score though it answered."""


@dataclass(frozen=True, slots=True)
class GoldScore:
    """What a judge made of one item.

    Attributes:
        value: the correlation of its predictions from the item's own label with the truth.
        reason: why there is none.
        wrong_value, wrong_reason: the same from another item's label; about 0, or undefined
            because nothing is predicted.
        n_windows: simulated under either label, taken together.
        n_failed: how many of these could not be.
        failures: these by their reasons.
        silent_mean: mean prediction, from the own label, at tokens where the feature is silent; in
            shares of the judge's full scale where it has one.
        captured_mass: mean share of probability that lay on ratings; None where not known.
    """

    simulator: str
    gold_version: str
    item: str
    value: float | None
    reason: str | None
    wrong_value: float | None
    wrong_reason: str | None
    n_windows: int
    n_failed: int
    failures: Mapping[str, int] = field(default_factory=dict)
    silent_mean: float | None = None
    captured_mass: float | None = None


@dataclass(frozen=True, slots=True)
class ItemMean:
    """Scores of items, averaged.

    Attributes:
        n: how many are defined.
        n_undefined: how many are not.
        mean: of the defined; None where none is.
        standard_error: of the mean, items being a sample of all that one might ask; None for
            fewer than two.
    """

    n: int
    n_undefined: int
    mean: float | None
    standard_error: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> ItemMean:
        """The mean of these scores."""
        every = list(values)
        defined = [value for value in every if value is not None]
        return cls(
            n=len(defined),
            n_undefined=len(every) - len(defined),
            mean=fmean(defined) if defined else None,
            standard_error=stdev(defined) / sqrt(len(defined)) if len(defined) > 1 else None,
        )


@dataclass(frozen=True, slots=True)
class GoldChange:
    """A run beside earlier runs with the same items, or beside another judge's.

    Attributes:
        n_runs: how many runs it is compared with.
        before: the means of all of them, item by item, averaged.
        mean: over the items, of the score now less that of before.
        standard_error: of this mean.
        most_changed: the item with the largest change.
        most_change: how large that is.
        is_beyond_chance: None where that cannot be told.
        reason: why it is, or why that cannot be told.
    """

    n_runs: int
    before: ItemMean
    mean: float | None = None
    standard_error: float | None = None
    most_changed: str | None = None
    most_change: float | None = None
    is_beyond_chance: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GoldStanding:
    """A judge's latest run of the gold items.

    Attributes:
        true: scores from the items' own labels.
        wrong: from other items' labels.
        n_windows, n_failed: over all items and both kinds of label.
        silent_mean, captured_mass: means over items.
        drift: how it differs from all earlier runs with the same version of the items.
    """

    simulator: str
    gold_version: str
    run_id: str
    scored_at: datetime
    true: ItemMean
    wrong: ItemMean
    n_windows: int
    n_failed: int
    silent_mean: float | None
    captured_mass: float | None
    drift: GoldChange


def gold_table(scores: Iterable[GoldScore], run_id: str, scored_at: datetime) -> pa.Table:
    """The table `gold_scores` of a part that holds these scores."""
    import pyarrow as pa

    schema = pa.schema(
        {
            **dict.fromkeys(("simulator", "gold_version", "item", "run_id"), pa.string()),
            "value": pa.float64(),
            "reason": pa.string(),
            "wrong_value": pa.float64(),
            "wrong_reason": pa.string(),
            "n_windows": pa.int64(),
            "n_failed": pa.int64(),
            "failures": pa.string(),
            "silent_mean": pa.float64(),
            "captured_mass": pa.float64(),
            "scored_at": pa.timestamp("us", tz="UTC"),
        }
    )
    rows = [
        {
            **{name: getattr(score, name, None) for name in schema.names},
            "failures": json.dumps(dict(score.failures), sort_keys=True),
            "run_id": run_id,
            "scored_at": scored_at,
        }
        for score in scores
    ]
    return pa.Table.from_pylist(rows, schema)


def has_gold(connection: duckdb.DuckDBPyConnection, simulator: str, run_id: str) -> bool:
    """Whether a judge has rated the gold items in this run already."""
    found = connection.execute(
        "SELECT 1 FROM gold_scores WHERE simulator = ? AND run_id = ? LIMIT 1", [simulator, run_id]
    )
    return bool(found.fetchall())


def n_gold_runs(connection: duckdb.DuckDBPyConnection, simulator: str) -> int:
    """How many runs have asked a judge: the draw of the next, so that it is really asked again."""
    return len({row["run_id"] for row in _read(connection) if row["simulator"] == simulator})


def read_gold(connection: duckdb.DuckDBPyConnection) -> tuple[GoldStanding, ...]:
    """Where each judge stands, by name; none in a database that is older than the table."""
    return tuple(_standing(runs) for _, runs in sorted(_runs(connection).items()))


def compare_judges(
    connection: duckdb.DuckDBPyConnection, simulator: str, other: str
) -> GoldChange | None:
    """The latest run of one judge beside that of another, item by item.

    None where they have no version of the items in common.
    """
    runs = _runs(connection)
    if not {simulator, other} <= set(runs):
        return None
    one, two = runs[simulator][-1], runs[other][-1]
    if one[0]["gold_version"] != two[0]["gold_version"]:
        return None
    return find_change(_values(one), [_values(two)])


def find_change(now: Values, before: Sequence[Values]) -> GoldChange:
    """How scores of items differ from those of earlier runs, and whether by chance.

    Items are paired: each has scores of its own height, and only its change tells. A change is
    beyond chance if it is at least `LEAST_CHANGE` and further from 0 than its standard error makes
    likely (Student's t, 1 in 100), or if half of the items that always had a score have none. The
    standard error is that of the changes among the items, and so holds what chance there is in
    either run. It also holds how differently a true change strikes the items: one that is felt in
    a single item is not found, and `most_changed` is for that.

    Args:
        now: the run; items that have no score because windows failed are left out.
        before: the earlier runs, likewise.
    """
    if not before:
        return GoldChange(0, ItemMean.of(()), reason=FIRST_RUN)
    means: dict[str, float | None] = {}
    always: set[str] = set()
    for item in sorted(set().union(*before)):
        found = [run[item] for run in before if item in run]
        means[item] = ItemMean.of(found).mean
        if None not in found:
            always.add(item)
    change = _paired(len(before), means, now)
    lost = {item for item in always if item in now and now[item] is None}
    if len(always) >= MIN_PAIRS and 2 * len(lost) >= len(always):
        return replace(change, is_beyond_chance=True, reason=LOST)
    return change


def _paired(n_runs: int, means: Values, now: Values) -> GoldChange:
    changes: dict[str, float] = {}
    for item, value in now.items():
        mean = means.get(item)
        if value is not None and mean is not None:
            changes[item] = value - mean
    unknown = GoldChange(n_runs, ItemMean.of(means.values()), reason=TOO_FEW_PAIRS)
    if not changes:
        return unknown
    found = ItemMean.of(changes.values())
    most = max(changes, key=lambda item: abs(changes[item]))
    unknown = replace(
        unknown,
        mean=found.mean,
        standard_error=found.standard_error,
        most_changed=most,
        most_change=changes[most],
    )
    if found.n < MIN_PAIRS or found.mean is None or found.standard_error is None:
        return unknown
    errors = _MOST_ERRORS.get(found.n, _MOST_ERRORS_OF_MANY)
    is_beyond = abs(found.mean) >= LEAST_CHANGE and abs(found.mean) > errors * found.standard_error
    return replace(unknown, is_beyond_chance=is_beyond, reason=CHANGED if is_beyond else None)


Run = list[dict[str, Any]]


def _standing(runs: Sequence[Run]) -> GoldStanding:
    latest = runs[-1]
    first = latest[0]
    earlier = [run for run in runs[:-1] if run[0]["gold_version"] == first["gold_version"]]
    return GoldStanding(
        **{name: first[name] for name in ("simulator", "gold_version", "run_id", "scored_at")},
        true=ItemMean.of(row["value"] for row in latest),
        wrong=ItemMean.of(row["wrong_value"] for row in latest),
        n_windows=sum(row["n_windows"] for row in latest),
        n_failed=sum(row["n_failed"] for row in latest),
        silent_mean=ItemMean.of(row["silent_mean"] for row in latest).mean,
        captured_mass=ItemMean.of(row["captured_mass"] for row in latest).mean,
        drift=find_change(_values(latest), [*map(_values, earlier)]),
    )


def _values(run: Run) -> Values:
    return {
        row["item"]: row["value"] for row in run if row["value"] is not None or not row["n_failed"]
    }


def _runs(connection: duckdb.DuckDBPyConnection) -> dict[str, list[Run]]:
    """By judge its runs, oldest first."""
    found: dict[tuple[str, str, str], Run] = {}
    for row in _read(connection):
        found.setdefault((row["simulator"], row["run_id"], row["gold_version"]), []).append(row)
    runs: dict[str, list[Run]] = {}
    for (simulator, _, _), run in found.items():
        runs.setdefault(simulator, []).append(run)
    return runs


def _read(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    import duckdb

    try:
        return read_rows(
            connection, "SELECT * FROM gold_scores ORDER BY scored_at, run_id, item", []
        )
    except duckdb.CatalogException:
        return []
