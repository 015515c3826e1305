"""A figure of an estimate on paper, and how figures are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["", "hours", "bytes"]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure, and what it was computed from."""

    name: str
    amount: float
    unit: Unit
    basis: str

    @property
    def said(self) -> str:
        """The figure as it is read."""
        if self.unit == "bytes":
            return bytes_said(self.amount)
        return hours_said(self.amount) if self.unit == "hours" else rounded(self.amount)


def rounded(number: float) -> str:
    """A number with all of its digits, or with three that count where it is no whole one."""
    if number == int(number) and abs(number) < 1e9:
        return f"{int(number):,}"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(number) >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def bytes_said(n: float) -> str:
    """Bytes in the largest decimal unit of which there is one."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} bytes"


def hours_said(hours: float) -> str:
    """Hours, or what is less than one in minutes or seconds."""
    for unit, share in (("h", 1), ("min", 60), ("s", 3600)):
        if hours * share >= 1 or unit == "s":
            return f"{rounded(hours * share)} {unit}"
    raise AssertionError("seconds are the last")
