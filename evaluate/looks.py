"""When scoring may stop early: looks at the interval that are fixed before the first window.

Windows are simulated up to the first share of what may be spent, and the interval is worked out;
if it is narrow enough, or clearly on one side of a threshold, that is the score. Otherwise on to
the next look; the last look ends it. Who looks several times errs several times: so each look's
interval is taken at a level at which all looks together hold the truth as often as was asked,
whatever makes them stop (Bonferroni's inequality, measured by
tests/benchmarks/interval_coverage.py).

The windows of a look are the first ones of an order drawn at random, and stay in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from .intervals import Interval

NARROW_ENOUGH = "the interval is narrow enough"
ABOVE_THRESHOLD = "the score is above the threshold"
BELOW_THRESHOLD = "the score is below the threshold"
LAST_LOOK = "the last look"

# A share of a count may miss a whole number by the rounding of a float.
_ROUNDING = 1e-9


class WindowCounts(NamedTuple):
    """How many windows of each stratum."""

    active: int
    silent: int


@dataclass(frozen=True, slots=True)
class Looks:
    """After which shares of the windows the interval is looked at, and what is enough.

    Attributes:
        shares: of the windows that may be simulated, rising to 1.
        narrow: the width at which an interval is narrow enough; None where none is.
        threshold: the correlation that the score is to be above or below; None without one.
    """

    shares: tuple[float, ...]
    narrow: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        rising = all(
            low < high for low, high in zip((0.0, *self.shares), self.shares, strict=False)
        )
        if not self.shares or not rising or self.shares[-1] != 1.0:
            raise ValueError(
                f"the shares at which to look are {self.shares}: they must rise from above 0 to 1"
            )
        if self.narrow is not None and not self.narrow > 0:
            raise ValueError(f"no interval is as narrow as {self.narrow}: give a width above 0")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(
                f"no score lies on both sides of {self.threshold}: "
                "give a threshold between -1 and 1"
            )

    def __len__(self) -> int:
        return len(self.shares)

    def level_of_each(self, level: float) -> float:
        """The level of each look's interval, for all of them together to cover at `level`."""
        return 1 - (1 - level) / len(self.shares)

    def n_at(self, look_number: int, n_active: int, n_silent: int) -> WindowCounts:
        """How many windows of each stratum are simulated by a look, of so many in all.

        Rounded up, so that a stratum which has windows has one from the first look on.

        Args:
            look_number: from 1.
            n_active: how many active windows may be simulated.
            n_silent: how many silent ones.
        """
        return WindowCounts(self.n_of(look_number, n_active), self.n_of(look_number, n_silent))

    def n_of(self, look_number: int, n_windows: int) -> int:
        """How many windows of one stratum, or of a part of it, are simulated by a look."""
        share = self.shares[self._place(look_number)]
        return min(n_windows, max(1, ceil(share * n_windows - _ROUNDING)))

    def why_stop(self, look_number: int, interval: Interval | None) -> str | None:
        """Why nothing more is simulated after a look; None to go on to the next.

        Args:
            look_number: from 1.
            interval: the score's, at `level_of_each`; None where it has none.
        """
        place = self._place(look_number)
        if interval is not None:
            if self.threshold is not None and interval.low > self.threshold:
                return ABOVE_THRESHOLD
            if self.threshold is not None and interval.high < self.threshold:
                return BELOW_THRESHOLD
            if self.narrow is not None and interval.high - interval.low <= self.narrow:
                return NARROW_ENOUGH
        return LAST_LOOK if place == len(self.shares) - 1 else None

    def _place(self, look_number: int) -> int:
        if not 1 <= look_number <= len(self.shares):
            raise ValueError(
                f"there is no look {look_number}: they are numbered 1 to {len(self.shares)}"
            )
        return look_number - 1
