"""How scores differ from those of an earlier state of the run, with intervals.

Two questions, two intervals. *Pairs*: what became of the features that were scored then and have
another label or score now? Each is set beside itself, and their mean difference is taken over
resampled features. *Medians*: how has the distribution as a whole moved, with the features that
only one of the states has? Features are resampled whole, each with whatever it has in either
state, so that one which stayed as it was moves neither median against the other.

Features are resampled as documents are for a score (`resampling`: Poisson counts by groups, the
same random numbers), and tails are expanded in the same way, for the number of features. What is
left out: that each score is itself an estimate is in the spread of differences between
features, and is not added again; and features that were chosen for a low score on `select` are not
corrected for, because what is compared is scored on other text.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

from ..store.records import ScoreChange
from .intervals import Interval, expanded_tail, limits_of
from .resampling import N_GROUPS, Resamples, drawn_sums

# As for documents behind a score's interval: with fewer it would cover less than it says.
MIN_FEATURES = 5
# Medians of resamples are read from a histogram: a thousandth of a correlation is fine enough.
_BINS_PER_UNIT = 1000


def change_of_pairs(
    before: Float64[np.ndarray, " F"],
    now: Float64[np.ndarray, " F"],
    resamples: Resamples,
    level: float = 0.95,
) -> ScoreChange | None:
    """The mean of `now - before` over features that have both; None where there are none."""
    n = len(now)
    if not n:
        return None
    difference = now - before
    value = float(difference.mean())
    if n < MIN_FEATURES:
        return ScoreChange(value, None, None, n)
    groups = np.arange(n) % N_GROUPS
    rows = np.stack([np.ones(n), difference])
    count, total = drawn_sums(rows, np.ones(n), groups, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = total / count
    return _with_limits(value, means, n, level)


def change_of_medians(
    before: Float64[np.ndarray, " F"],
    now: Float64[np.ndarray, " F"],
    resamples: Resamples,
    level: float = 0.95,
) -> ScoreChange | None:
    """The median of `now` less that of `before`; None where either state has no scores.

    Args:
        before: scores of features; NaN where that state has none.
        now: of the same features in the same order, likewise.
        resamples: of features.
        level: how often the interval should hold the truth.
    """
    n = min(int(np.isfinite(before).sum()), int(np.isfinite(now).sum()))
    if not n:
        return None
    value = float(np.nanmedian(now) - np.nanmedian(before))
    if n < MIN_FEATURES:
        return ScoreChange(value, None, None, n)
    medians = _resampled_medians(now, resamples) - _resampled_medians(before, resamples)
    return _with_limits(value, medians, n, level)


def _resampled_medians(
    scores: Float64[np.ndarray, " F"], resamples: Resamples
) -> Float64[np.ndarray, " B"]:
    """The median of each resample, to the width of a bin; NaN for one that drew nothing."""
    has_score = np.isfinite(scores)
    used, groups = np.unique(np.flatnonzero(has_score) % N_GROUPS, return_inverse=True)
    levels, places = np.unique(
        np.round(scores[has_score] * _BINS_PER_UNIT).astype(np.int64), return_inverse=True
    )
    tabled = np.bincount(places * len(used) + groups, minlength=len(levels) * len(used))
    counts: Float32[np.ndarray, "L G"] = tabled.reshape(len(levels), -1).astype(np.float32)
    below: Float32[np.ndarray, "L B"] = np.cumsum(counts @ resamples.count[used], axis=0)
    medians = levels[np.argmax(below >= below[-1] / 2, axis=0)] / _BINS_PER_UNIT
    return np.where(below[-1] > 0, medians, np.nan)


def _with_limits(
    value: float, resampled: Float64[np.ndarray, " B"], n: int, level: float
) -> ScoreChange:
    found: Interval = limits_of(resampled, expanded_tail(min(n, N_GROUPS), level))
    return ScoreChange(value, min(found.low, value), max(found.high, value), n)
