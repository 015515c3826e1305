"""Two or more sides of a run, or two runs, compared: the values that the page and `--json` have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluate.intervals import draw_resamples
from ..evaluate.paired_difference import (
    PairedDifference,
    SideScores,
    difference_from_lifts,
    margins,
    paired_difference,
)
from ..store.paired_scores import Figure
from ..store.records import FeatureId
from ..store.side_facts import SideFacts
from ..store.side_pairs import (
    Missing,
    SidePairs,
    TextChanges,
    count_other_windows,
    pair_sides,
    read_texts,
    read_window_facts,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from ..store.database import Store

_SEED = 0
_LEVEL = 0.95
_RESAMPLES = 1000

SAME_WINDOWS, ALL_WINDOWS = "same windows", "all"
SAME_TEXT, OTHER_TEXT = "same text", "other text"


@dataclass(frozen=True, slots=True)
class Side:
    """A side as it is called, what stands behind it, and where its labels are."""

    title: str
    facts: SideFacts
    store: Store


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """The difference over some of the pairs.

    Attributes:
        among: which.
    """

    among: str
    difference: PairedDifference


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """A label with its figure.

    Attributes:
        n_candidates: that the figure is the mean of; of several the label is the best.
    """

    label_id: str
    text: str | None
    value: float
    ci_low: float | None
    ci_high: float | None
    n_candidates: int


@dataclass(frozen=True, slots=True)
class MovedFeature:
    """A feature whose figure by one side is far from that by the other.

    Attributes:
        difference: the other less the base.
        margin: by how much that is more than the two intervals allow; None without intervals.
        is_same: both are on the same windows.
    """

    feature: str
    difference: float
    margin: float | None
    is_same: bool
    base: ShownFigure
    other: ShownFigure


@dataclass(frozen=True, slots=True)
class Compared:
    """One side against the base, by one simulator on one split.

    Attributes:
        figure: what is compared.
        base, other: titles of the sides.
        level: of the intervals, so that all of one simulator and split together keep to 95%.
        n_comparisons: how many those are.
        rows: over parts of the pairs and all of them; empty where there is no pair.
        other_windows: pairs that are not on the same windows, by reason.
        missing_base, missing_other: features without a figure by that side.
        n_neither: features that were tried, without a figure by either.
        up, down: features that are most clearly better, and worse.
    """

    figure: Figure
    base: str
    other: str
    level: float
    n_comparisons: int
    rows: tuple[DifferenceRow, ...]
    other_windows: Mapping[str, int]
    missing_base: tuple[Missing, ...]
    missing_other: tuple[Missing, ...]
    n_neither: int
    up: tuple[MovedFeature, ...] = ()
    down: tuple[MovedFeature, ...] = ()


@dataclass(frozen=True, slots=True)
class BesideLookup:
    """A side against the token lookup's own predictions on the same windows."""

    figure: Figure
    side: str
    difference: PairedDifference


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of a comparison.

    Attributes:
        by: what tells the sides apart; `run` where they are two runs.
        metric: as `scorer/metric`.
        sides: the base first.
        compared: against the base.
        lookups: each side against the token lookup.
        texts: of two runs.
        notes: what else is to be known, a sentence each.
    """

    by: str
    metric: str
    sides: tuple[tuple[str, SideFacts], ...]
    compared: tuple[Compared, ...]
    lookups: tuple[BesideLookup, ...] = ()
    texts: TextChanges | None = None
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        content = asdict(self)
        content["sides"] = [
            {"title": title, **asdict(facts), "usd_per_label": facts.usd_per_label}
            for title, facts in self.sides
        ]
        return content


def compare_tables(
    figure: Figure,
    base: Side,
    others: Sequence[tuple[Side, pa.Table]],
    of_base: pa.Table,
    n_shown: int,
) -> Iterator[Compared]:
    """Each side against the base.

    Args:
        figure: what is compared.
        base: the side that all are compared with.
        others: with their figures.
        of_base: the base's figures.
        n_shown: how many features that moved most, each way.
    """
    paired = [(side, pair_sides(of_base, table)) for side, table in others]
    n = max(1, sum(len(pairs.table) > 0 for _, pairs in paired))
    level = 1 - (1 - _LEVEL) / n
    # As many in each tail as of one comparison alone.
    resamples = draw_resamples(_SEED, _RESAMPLES * n)
    for side, pairs in paired:
        first, second = (_scores(pairs.table, f"_{which}") for which in ("base", "other"))
        rows = []
        for among, chosen in _parts(pairs.table):
            difference = paired_difference(
                _taken(first, chosen), _taken(second, chosen), resamples, level
            )
            if difference is not None:
                rows.append(DifferenceRow(among, difference))
        up, down = _moved(pairs, first, second, base, side, n_shown)
        yield Compared(
            figure=figure,
            base=base.title,
            other=side.title,
            level=level,
            n_comparisons=n,
            rows=tuple(rows),
            other_windows=_other_windows(figure, base, side, pairs),
            missing_base=pairs.missing_base,
            missing_other=pairs.missing_other,
            n_neither=pairs.n_neither,
            up=up,
            down=down,
        )


def beside_lookup(figure: Figure, side: Side, table: pa.Table) -> BesideLookup | None:
    """A side's lifts over the token lookup; None where it has none."""
    columns = _numbers(table, "value", "lift", "lift_ci_low", "lift_ci_high")
    has_lift = np.isfinite(columns["lift"])
    lift = SideScores(columns["lift"], columns["lift_ci_low"], columns["lift_ci_high"])
    found = difference_from_lifts(
        columns["value"][has_lift], _taken(lift, has_lift), draw_resamples(_SEED)
    )
    return None if found is None else BesideLookup(figure, side.title, found)


def _parts(table: pa.Table) -> Iterator[tuple[str, Any]]:
    """The pairs that are looked at together: those on the same windows, all, and by text."""
    is_same = table["is_same"].to_numpy()
    if not len(is_same):
        return
    if is_same.any():
        yield SAME_WINDOWS, is_same
    if not is_same.all():
        yield ALL_WINDOWS, np.ones(len(table), np.bool_)
    if "says_same" in table.column_names:
        says_same = table["says_same"].to_numpy()
        if says_same.any() and not says_same.all():
            yield SAME_TEXT, says_same
            yield OTHER_TEXT, ~says_same


def _other_windows(figure: Figure, base: Side, side: Side, pairs: SidePairs) -> Mapping[str, int]:
    differ = pairs.table.filter(~pairs.table["is_same"].to_numpy())
    if not len(differ):
        return {}
    facts = []
    for store, which in ((base.store, "base"), (side.store, "other")):
        with store.cursor() as connection:
            facts.append(read_window_facts(connection, figure, differ[f"label_id_{which}"]))
    return count_other_windows(pairs, *facts)


def _moved(
    pairs: SidePairs, of_base: SideScores, of_other: SideScores, base: Side, side: Side, n: int
) -> tuple[tuple[MovedFeature, ...], tuple[MovedFeature, ...]]:
    """The features that are most clearly better, and worse."""
    difference, margin = of_other.value - of_base.value, margins(of_base, of_other)
    # Those without intervals come last, by their difference.
    order = np.lexsort([-np.abs(difference), -np.nan_to_num(margin, nan=-np.inf)])
    chosen = [order[np.sign(difference[order]) == sign][:n] for sign in (1, -1)]
    rows = np.concatenate(chosen)
    taken = pairs.table.take(rows).to_pylist()
    texts: list[dict[str, str | None]] = []
    for store, which in ((base.store, "base"), (side.store, "other")):
        with store.cursor() as connection:
            texts.append(read_texts(connection, [row[f"label_id_{which}"] for row in taken]))
    moved = tuple(
        MovedFeature(
            feature=str(FeatureId(row["sae_id"], row["feature"])),
            difference=float(difference[place]),
            margin=None if np.isnan(margin[place]) else float(margin[place]),
            is_same=row["is_same"],
            base=_shown(row, "base", texts[0]),
            other=_shown(row, "other", texts[1]),
        )
        for place, row in zip(rows.tolist(), taken, strict=True)
    )
    return moved[: len(chosen[0])], moved[len(chosen[0]) :]


def _shown(row: Mapping[str, Any], which: str, texts: Mapping[str, str | None]) -> ShownFigure:
    label_id = row[f"label_id_{which}"]
    figures = (row[f"{name}_{which}"] for name in ("value", "ci_low", "ci_high", "n_candidates"))
    return ShownFigure(label_id, texts.get(label_id), *figures)


def _scores(table: pa.Table, ending: str) -> SideScores:
    columns = _numbers(table, *(f"{name}{ending}" for name in ("value", "ci_low", "ci_high")))
    return SideScores(*columns.values())


def _numbers(table: pa.Table, *names: str) -> dict[str, Any]:
    return {name: table[name].to_numpy().astype(np.float64) for name in names}


def _taken(scores: SideScores, chosen: Any) -> SideScores:
    return SideScores(scores.value[chosen], scores.low[chosen], scores.high[chosen])
