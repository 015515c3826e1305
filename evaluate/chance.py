"""How often something comes about beside how often it would by chance, with an exact interval.

Clopper and Pearson (1934): it holds at least as often as it says for any number of trials, and
has no trouble with none or all of few. The trials must be independent. Left out: shares over
windows of documents, which are not (`agreement.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .intervals import Interval

_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class AboveChance:
    """A share of trials corrected for chance: 0 by chance, 1 where all succeed."""

    value: float
    interval: Interval


def above_chance(successes: float, n: int, chance: float, level: float) -> AboveChance:
    """`(share - chance) / (1 - chance)` of n trials, with the exact interval of the share.

    Args:
        successes: a tie between k counts as 1 / k of one. The interval then begins at what whole
            successes are below, and ends at what they are above.
        n: at least 1.
        chance: from 0, below 1.
        level: of the interval.
    """
    tail = (1 - level) / 2
    fewest, most = math.floor(successes), math.ceil(successes)
    low = _share_where(lambda p: _at_least(fewest, n, p) - tail) if fewest else 0.0
    high = _share_where(lambda p: tail - _at_most(most, n, p)) if most < n else 1.0
    value, low, high = ((share - chance) / (1 - chance) for share in (successes / n, low, high))
    return AboveChance(value, Interval(low, high))


def _share_where(rising: Callable[[float], float]) -> float:
    """The share at which something that rises with it is zero."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low


def _at_least(k: int, n: int, p: float) -> float:
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def _at_most(k: int, n: int, p: float) -> float:
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
