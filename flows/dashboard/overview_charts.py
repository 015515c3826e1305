"""The overview's charts: scores of each explainer beside chance, and scores against density."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...store.null_ladder import LadderRow
from ...store.overview import SCORE_BINS, Bars
from ...store.score_spread import DENSITY_BINS, Cell, DensityPlot, Dot
from .charts import Area, Frame, Histogram, draw_areas, draw_histogram, shade_limits

# Over so many powers of ten narrow cells would be too many to draw.
_MOST_NARROW_DECADES = 4.5
_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class ScoreChart:
    """The scores of one explainer's labels in force by one judge.

    Attributes:
        ladder: what all its labels score, and what they would by chance; None where unknown.
    """

    bars: Bars
    ladder: LadderRow | None
    drawing: Histogram


def score_charts(bars: Sequence[Bars], ladder: Sequence[LadderRow]) -> tuple[ScoreChart, ...]:
    """A chart for each explainer and judge."""
    rungs = {(row.explainer, row.simulator): row for row in ladder}
    found = []
    for each in bars:
        rung = rungs.get((each.explainer, each.simulator))
        marks = () if rung is None else (
            ("median", rung.median),
            ("null", rung.null_median),
            ("shuffled", rung.shuffled_median),
        )  # fmt: skip
        drawing = draw_histogram(each.counts, SCORE_BINS, marks)
        found.append(ScoreChart(each, rung, drawing))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class PlacedDot:
    """A feature and where it lies."""

    x: float
    y: float
    dot: Dot


@dataclass(frozen=True, slots=True)
class DensityRow:
    """Features of about the same density, by their scores.

    Attributes:
        low, high: densities.
        counts: below a quarter (also below 0), from there to a half, and so on.
    """

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DensityChart:
    """Scores against densities, placed.

    Attributes:
        areas: cells behind the dots; none where every feature has its dot.
        limits: their shades, each with the least count that has it.
        rows: the same as a table.
    """

    plot: DensityPlot
    frame: Frame
    areas: tuple[Area, ...]
    limits: tuple[tuple[int, int], ...]
    dots: tuple[PlacedDot, ...]
    rows: tuple[DensityRow, ...]


def density_chart(plot: DensityPlot) -> DensityChart | None:
    """Where all of it lies; None where there is nothing."""
    if not plot.cells:
        return None
    first = min(cell.density_bin for cell in plot.cells)
    last = max(cell.density_bin for cell in plot.cells) + 1
    merged = 1 if last - first <= _MOST_NARROW_DECADES * DENSITY_BINS else 2
    counts: Counter[tuple[int, int]] = Counter()
    for cell in plot.cells:
        counts[cell.density_bin // merged, cell.score_bin] += cell.n
    lowest = min(cell.score_bin for cell in plot.cells)
    # To a tenth below what there is, and whole cells at either end.
    bottom = 0.0 if lowest >= 0 else max(-1.0, math.floor(10 * lowest / SCORE_BINS) / 10)
    left, right = (10 ** (merged * each / DENSITY_BINS) for each in (
        first // merged, -(-last // merged)
    ))  # fmt: skip
    frame = Frame.of((left, right), (bottom, 1.0))
    areas: tuple[Area, ...] = ()
    if plot.is_sample:
        each = sorted((*place, n) for place, n in counts.items())
        areas = draw_areas(frame, each, DENSITY_BINS / merged, SCORE_BINS)
    dots = tuple(
        PlacedDot(frame.across.place(dot.density), frame.up.place(dot.score), dot)
        for dot in plot.dots
    )
    most = max((area.n for area in areas), default=0)
    limits = shade_limits(most) if areas else ()
    return DensityChart(plot, frame, areas, limits, dots, _rows(plot.cells))


def _rows(cells: Sequence[Cell]) -> tuple[DensityRow, ...]:
    """A row for each half of a power of ten."""
    half = DENSITY_BINS // 2
    counts: dict[int, Counter[int]] = {}
    for cell in cells:
        quarter = max(0, cell.score_bin * _QUARTERS // SCORE_BINS)
        counts.setdefault(cell.density_bin // half, Counter())[quarter] += cell.n
    return tuple(
        DensityRow(10 ** (row / 2), 10 ** ((row + 1) / 2), tuple(by[at] for at in range(_QUARTERS)))
        for row, by in sorted(counts.items())
    )
