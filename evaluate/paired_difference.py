"""How the scores of two sides differ over the same features: on average, and feature by feature.

The mean difference has an interval from resampled features (`score_change`). A feature is *clearly*
better or worse where its difference is more than the intervals of its two scores allow: the limits
of a difference from those of its two terms (Zou and Donner 2008, "Construction of confidence limits
about effect measures: a general approach", for independent estimates). Two scores on the same
windows err together as a rule, so that these limits are too wide rather than too narrow. Without
any real difference about one feature in forty is clear either way, at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ..store.records import ScoreChange
from .intervals import Resamples
from .score_change import change_of_pairs


@dataclass(frozen=True, slots=True)
class SideScores:
    """Scores of features by one side, with their intervals; NaN where there is none."""

    value: Float64[np.ndarray, " F"]
    low: Float64[np.ndarray, " F"]
    high: Float64[np.ndarray, " F"]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The second side's scores less those of the first, over features that both have.

    Attributes:
        mean: of the differences, with its interval.
        mean_base, mean_other, median_base, median_other: of either side over these features.
        n_better, n_worse, n_equal: features whose difference is above, below and at 0.
        n_clearly_better, n_clearly_worse: of these, by more than the scores' intervals allow.
        n_without_interval: features of which that cannot be said.
    """

    mean: ScoreChange
    mean_base: float
    mean_other: float
    median_base: float
    median_other: float
    n_better: int
    n_worse: int
    n_equal: int
    n_clearly_better: int
    n_clearly_worse: int
    n_without_interval: int


def paired_difference(
    base: SideScores, other: SideScores, resamples: Resamples, level: float = 0.95
) -> PairedDifference | None:
    """What the differences come to; None without any pair.

    Args:
        base: scores of features, all with a value.
        other: of the same features in the same order, likewise.
        resamples: of the features.
        level: how often the interval of the mean should hold the truth.
    """
    change = change_of_pairs(base.value, other.value, resamples, level)
    if change is None:
        return None
    return _counted(change, base.value, other.value, margins(base, other))


def difference_from_lifts(
    score: Float64[np.ndarray, " F"], lift: SideScores, resamples: Resamples, level: float = 0.95
) -> PairedDifference | None:
    """What the lifts of scores over the null come to; None without any.

    Their intervals are of the differences themselves, so that nothing has to be put together.

    Args:
        score: of each feature.
        lift: of the same features, all with a value.
        resamples: of the features.
        level: as for `paired_difference`.
    """
    change = change_of_pairs(np.zeros_like(lift.value), lift.value, resamples, level)
    if change is None:
        return None
    margin = np.where(lift.value > 0, lift.low, -lift.high)
    return _counted(change, score - lift.value, score, margin)


def margins(base: SideScores, other: SideScores) -> Float64[np.ndarray, " F"]:
    """By how much each difference, whatever its sign, is more than the two intervals allow.

    Below 0 where they allow it; NaN where either has no interval.
    """
    difference = other.value - base.value
    up = np.hypot(other.value - other.low, base.high - base.value)
    down = np.hypot(other.high - other.value, base.value - base.low)
    beyond: Float64[np.ndarray, " F"]
    beyond = np.abs(difference) - np.where(difference > 0, up, down)
    return beyond


def _counted(
    change: ScoreChange,
    base: Float64[np.ndarray, " F"],
    other: Float64[np.ndarray, " F"],
    margin: Float64[np.ndarray, " F"],
) -> PairedDifference:
    difference = other - base
    is_clear = margin > 0
    return PairedDifference(
        mean=change,
        mean_base=float(base.mean()),
        mean_other=float(other.mean()),
        median_base=float(np.median(base)),
        median_other=float(np.median(other)),
        n_better=int((difference > 0).sum()),
        n_worse=int((difference < 0).sum()),
        n_equal=int((difference == 0).sum()),
        n_clearly_better=int((is_clear & (difference > 0)).sum()),
        n_clearly_worse=int((is_clear & (difference < 0)).sum()),
        n_without_interval=int(np.isnan(margin).sum()),
    )
