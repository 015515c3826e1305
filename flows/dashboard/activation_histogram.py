"""A feature's activations as bars: where each stands, how high, and what it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .page_templates import short

WIDTH, HEIGHT = 300.0, 64.0
_LOWEST = 1.5


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin, in the chart's units."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """A chart.

    Attributes:
        low, high: what its axis goes from and to; None where the edges were not kept.
        most: active tokens in the highest bar.
    """

    bars: tuple[Bar, ...]
    low: float | None
    high: float | None
    most: int


def make_histogram(
    counts: Sequence[int], edges: Sequence[float] | None, peak: float | None
) -> Histogram | None:
    """The bins from the first to the last that has anything; None if all are empty.

    What is there at all has a bar that can be seen.

    Args:
        counts: active tokens by bin.
        edges: each bin's lower edge.
        peak: the largest activation, where the last bar ends.
    """
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return None
    places = range(filled[0], filled[-1] + 1)
    most = max(counts)
    step = WIDTH / len(places)
    known = edges if edges is not None and len(edges) >= len(counts) else None

    def upper(place: int) -> float | None:
        if known is None:
            return None
        edge = known[place + 1] if place + 1 < len(known) else None
        if place == filled[-1] and peak is not None:
            return peak if edge is None else min(edge, peak)
        return edge

    def bar(place: int) -> Bar:
        count = counts[place]
        height = max(_LOWEST, HEIGHT * count / most) if count else 0.0
        where = "" if known is None else f"{short(known[place])} to {short(upper(place))}: "
        return Bar(
            x=round((place - places.start) * step, 2),
            y=round(HEIGHT - height, 2),
            width=round(max(step - 1, step * 0.8), 2),
            height=round(height, 2),
            title=f"{where}{count:,} token{'' if count == 1 else 's'}",
        )

    return Histogram(
        bars=tuple(map(bar, places)),
        low=None if known is None else known[places.start],
        high=upper(places[-1]),
        most=most,
    )
