"""The geometry of charts: where on a drawing values lie. Templates draw it, as SVG.

A drawing has a size in units of its own and is stretched to the page; nothing here knows of
colours, which are classes of the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
# Beyond this share of the width a mark's name has no room on its right.
_LAST_TO_THE_RIGHT = 0.72


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis.

    Attributes:
        at: where, in the drawing's units.
        value: what of.
        words: what is written there; empty for a mark between two others.
    """

    at: float
    value: float
    words: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Values of an axis and where they lie; what lies beyond its ends is put there.

    Attributes:
        low, high: its ends as values, of a logarithmic one both above 0.
        start, end: its ends as places; the other way round for an axis that goes up.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (self._as_length(each) for each in (self.low, self.high, value))
        share = 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, n: int = 5) -> tuple[Tick, ...]:
        """Round values on it, about so many with words."""
        if self.is_log:
            return self._powers(n)
        return tuple(
            Tick(self.place(value), value, _plain(value))
            for value in round_values(self.low, self.high, n)
        )

    def _powers(self, n: int) -> tuple[Tick, ...]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        decades = math.log10(self.high / self.low)
        # Over few powers of ten 2 and 5 have words as well, over many not even each power.
        spoken = (1, 2, 5) if decades <= n / 3 else (1,)
        every = max(1, math.ceil(decades / (1.5 * n)))
        found = []
        for power in range(first, last + 1):
            for digit in range(1, 10):
                value = float(f"{digit}e{power}")
                if not self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9):
                    continue
                has_words = digit in spoken and power % every == 0
                if has_words or (every == 1 and decades <= n):
                    words = share_words(value) if has_words else ""
                    found.append(Tick(self.place(value), value, words))
        return tuple(found)

    def _as_length(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_log else value


def round_values(low: float, high: float, n: int = 5) -> tuple[float, ...]:
    """About so many round numbers from one to the other, both included where they are round."""
    if not high > low:
        return (low,)
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((s * power for s in _STEPS), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Not by adding up, which makes 0.30000000000000004 of three tenths.
    return tuple(round(k * step, 12) for k in range(first, last + 1))


def share_words(share: float) -> str:
    """A round share in as few characters as will do: `0.01%`."""
    return f"{100 * share:.12f}".rstrip("0").rstrip(".") + "%"


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram; those with nothing in them are left out.

    Attributes:
        x, y, width, height: in the drawing's units.
        low, high: from which value to which.
        n: how many.
    """

    x: float
    y: float
    width: float
    height: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A value that is marked across a histogram, under a name.

    Attributes:
        at: where it lies.
        line: in which line its name stands, from 0: no two in one.
        is_left: whether the name stands left of it, as there is no room on the right.
    """

    at: float
    value: float
    name: str
    line: int
    is_left: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of scores with values marked on it.

    Attributes:
        width, height: of the drawing.
        base: where bars stand.
        most: the count of the highest bar, which reaches `top`.
    """

    width: int
    height: int
    base: float
    top: float
    most: int
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]


def draw_histogram(
    counts: Mapping[int, int],
    bins: int,
    marks: Sequence[tuple[str, float | None]] = (),
    width: int = 360,
    height: int = 170,
) -> Histogram:
    """A histogram of values from 0 to 1, or from as far below 0 as there are any.

    Args:
        counts: by bin; bin `b` goes from `b / bins` to the next one's start.
        bins: from 0 to 1.
        marks: values that are marked, by name.
        width: of the drawing.
        height: of the drawing.
    """
    names = [(name, value) for name, value in marks if value is not None]
    # A line for each name, and room for the count of the highest bar.
    top, base, side = 14.0 * len(names) + 16.0, height - 20.0, 10.0
    values = [value for _, value in names]
    first = min([0, *counts, *(math.floor(value * bins) for value in values)])
    scale = Scale(first / bins, 1.0, side, width - side)
    most = max(counts.values(), default=0)
    bars = []
    for number, n in sorted(counts.items()):
        low, high = number / bins, (number + 1) / bins
        left, right = scale.place(low), scale.place(high)
        # What is there at all is never invisible.
        tall = max(1.5, round((base - top) * n / most, 2)) if most else 0.0
        bars.append(Bar(left + 0.5, base - tall, round(right - left - 1, 2), tall, low, high, n))
    placed = sorted((scale.place(value), value, name) for name, value in names)
    # From left to right each in a line below: no line crosses the name of another mark.
    fitting = [mark for mark in placed if mark[0] <= _LAST_TO_THE_RIGHT * width]
    others = [mark for mark in reversed(placed) if mark not in fitting]
    marked = tuple(
        Mark(at, value, name, line, line >= len(fitting))
        for line, (at, value, name) in enumerate([*fitting, *others])
    )
    return Histogram(width, height, base, top, most, tuple(bars), marked, scale.ticks(5))


@dataclass(frozen=True, slots=True)
class Area:
    """A cell of a plot: how many points lie in it.

    Attributes:
        shade: 1 for the fewest to `SHADES` for the most.
        low_x, high_x, low_y, high_y: its limits as values.
    """

    x: float
    y: float
    width: float
    height: float
    n: int
    shade: int
    low_x: float
    high_x: float
    low_y: float
    high_y: float


SHADES = 6


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of a plot, density across and score upwards.

    Attributes:
        left, right, top, bottom: where the plot itself lies in the drawing.
    """

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    across: Scale
    up: Scale

    @classmethod
    def of(
        cls, x: tuple[float, float], y: tuple[float, float], width: int = 760, height: int = 380
    ) -> Self:
        """For values between these."""
        left, right, top, bottom = 46.0, width - 14.0, 10.0, height - 50.0
        across = Scale(*x, left, right, is_log=True)
        return cls(width, height, left, right, top, bottom, across, Scale(*y, bottom, top))

    @property
    def x_ticks(self) -> tuple[Tick, ...]:
        """Of the density."""
        return self.across.ticks(6)

    @property
    def y_ticks(self) -> tuple[Tick, ...]:
        """Of the score."""
        return self.up.ticks(5)


def shade_of(n: int, most: int) -> int:
    """Which of `SHADES` a count has, in equal steps of its square root.

    In equal steps of the logarithm nearly all of a million features share the two last shades.
    """
    if most <= 1:
        return 1
    return min(SHADES, 1 + int(SHADES * math.sqrt(n / most) + 1e-9))


def shade_limits(most: int) -> tuple[tuple[int, int], ...]:
    """Each shade and the least count that has it; shades that no count has are left out."""
    least: dict[int, int] = {}
    for shade in range(1, SHADES + 1):
        n = max(1, math.ceil(most * ((shade - 1) / SHADES) ** 2 - 1e-9))
        if n <= most:
            least.setdefault(shade_of(n, most), n)
    return tuple(sorted(least.items()))


def draw_areas(
    frame: Frame, counts: Iterable[tuple[int, int, int]], x_bins: float, y_bins: int
) -> tuple[Area, ...]:
    """Cells of a plot.

    Args:
        frame: of the plot.
        counts: the bin across, the bin upwards, and how many.
        x_bins: bins of a power of ten; bin `b` begins at `10 ** (b / x_bins)`.
        y_bins: bins from 0 to 1.
    """
    counts = list(counts)
    most = max((n for *_, n in counts), default=0)
    found = []
    for column, row, n in counts:
        low_x, high_x = (10 ** (each / x_bins) for each in (column, column + 1))
        low_y, high_y = row / y_bins, (row + 1) / y_bins
        x, bottom = frame.across.place(low_x), frame.up.place(low_y)
        width = round(frame.across.place(high_x) - x, 2)
        y = frame.up.place(high_y)
        height = round(bottom - y, 2)
        shade = shade_of(n, most)
        found.append(Area(x, y, width, height, n, shade, low_x, high_x, low_y, high_y))
    return tuple(found)
