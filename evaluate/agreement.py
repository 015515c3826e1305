"""How well a judge's answers tell windows of one kind from those of another.

Answers are probabilities, one a window, and windows count alike. Accuracies are balanced and
corrected for chance, because in a test of four positives and ten negatives whoever answers "no"
to everything is right 71% of the time.

The intervals are from resampled documents, as in `intervals`: both kinds of windows are weighted
by one table of counts, so that a document with windows of both moves both. The guard: answers to
a few windows without a single error would have the interval [1, 1]. So each resample has a
pseudo-positive and a pseudo-negative more, with weights from the standard exponential
distribution. For the lower limit they are answered, and ranked, as wrongly as can be, for the
upper as rightly. Of n windows that are all right the lower limit is then about that of Clopper
and Pearson for a share; an AUROC's is lower than need be, since either kind has its own guard.
Simulated, with 6 to 60 windows of a kind, one or three a document, and true values from .5 to 1:
intervals of 95% hold the AUROC 98 to 100% of the time, the balanced accuracy 96 to 100%.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from .intervals import MIN_ACTIVE_DOCUMENTS, N_GROUPS, Interval, Resamples

NO_POSITIVE = "no window in which the feature fires was answered"
NO_NEGATIVE = "no window in which the feature is silent was answered"
TOO_FEW_DOCUMENTS = (
    f"the windows of a kind are from fewer than {MIN_ACTIVE_DOCUMENTS} documents (as evenly used "
    "ones)"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's answers to windows of one kind.

    Attributes:
        probability: what was asked for, such as that the window is a positive, 0 to 1.
        document: a number per document, the same wherever the document occurs.
    """

    probability: Float64[np.ndarray, " W"]
    document: Int64[np.ndarray, " W"]

    def __len__(self) -> int:
        return len(self.probability)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A figure of agreement, or why it is undefined; its interval, or why there is none."""

    value: float | None
    reason: str | None = None
    interval: Interval | None = None
    interval_reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One kind of windows in B resamples: how often each is drawn, and the guard's weight."""

    count: Float64[np.ndarray, "W B"]
    total: Float64[np.ndarray, " B"]
    pseudo: Float64[np.ndarray, " B"]

    @property
    def guarded_total(self) -> Float64[np.ndarray, " B"]:
        total: Float64[np.ndarray, " B"] = self.total + self.pseudo
        return total

    def sum_of(self, values: Float64[np.ndarray, " W"]) -> Float64[np.ndarray, " B"]:
        """The sum of values over the windows drawn."""
        summed: Float64[np.ndarray, " B"] = values @ self.count
        return summed


def auroc(
    positives: Judged, negatives: Judged, resamples: Resamples, level: float = 0.95
) -> Agreement:
    """How often a positive has a higher probability than a negative; a tie counts half.

    0.5 is chance, 1 a perfect separation. No interval below `MIN_ACTIVE_DOCUMENTS` documents (by
    Kish's rule) on either side; undefined without answers on either.
    """
    if reason := _nothing(positives, negatives):
        return Agreement(None, reason)
    p, n = positives.probability[:, None], negatives.probability[None, :]
    wins = (p > n) + 0.5 * (p == n)
    drawn_p, drawn_n = _draw(positives, resamples), _draw(negatives, resamples, other=True)
    won = np.einsum("pb,pb->b", drawn_p.count, wins @ drawn_n.count)
    pairs = drawn_p.guarded_total * drawn_n.guarded_total
    # All pairs but those of two drawn windows have a pseudo-window.
    guard = pairs - drawn_p.total * drawn_n.total
    value = float(wins.mean())
    return _agreement(value, won / pairs, (won + guard) / pairs, level, positives, negatives)


def balanced_accuracy(
    positives: Judged, negatives: Judged, resamples: Resamples, level: float = 0.95
) -> Agreement:
    """The mean of two shares: of positives above 0.5 and of negatives below; 0.5 itself is half.

    Chance is 0.5. Interval and undefined cases as for `auroc`.
    """
    if reason := _nothing(positives, negatives):
        return Agreement(None, reason)
    right_p, right_n = _is_yes(positives.probability), 1.0 - _is_yes(negatives.probability)
    drawn_p, drawn_n = _draw(positives, resamples), _draw(negatives, resamples, other=True)
    shares_p, shares_n = _shares(right_p, drawn_p), _shares(right_n, drawn_n)
    lower, upper = (shares_p + shares_n) / 2
    value = float(right_p.mean() + right_n.mean()) / 2
    return _agreement(value, lower, upper, level, positives, negatives)


def mean_answer(judged: Judged, resamples: Resamples, level: float = 0.95) -> Agreement:
    """The mean of the answers to windows of one kind, with an interval of the same making."""
    if not len(judged):
        return Agreement(None, NO_POSITIVE)
    lower, upper = _shares(judged.probability, _draw(judged, resamples))
    return _agreement(float(judged.probability.mean()), lower, upper, level, judged)


def correct_for_chance(agreement: Agreement, chance: float = 0.5) -> Agreement:
    """`(value - chance) / (1 - chance)`: 0 for whoever guesses or always says the same, 1 at best.

    For a balanced accuracy that is `2 * value - 1`.
    """

    def corrected(value: float) -> float:
        return (value - chance) / (1 - chance)

    if agreement.value is None:
        return agreement
    interval = agreement.interval
    return Agreement(
        corrected(agreement.value),
        interval=interval and Interval(corrected(interval.low), corrected(interval.high)),
        interval_reason=agreement.interval_reason,
    )


def _nothing(positives: Judged, negatives: Judged) -> str | None:
    if not len(positives):
        return NO_POSITIVE
    return None if len(negatives) else NO_NEGATIVE


def _is_yes(probability: Float64[np.ndarray, " W"]) -> Float64[np.ndarray, " W"]:
    yes: Float64[np.ndarray, " W"] = (probability > 0.5) + 0.5 * (probability == 0.5)
    return yes


def _draw(judged: Judged, resamples: Resamples, other: bool = False) -> _Drawn:
    """The windows in each resample; the `other` kind's guard has weights of its own."""
    count = resamples.count[judged.document % N_GROUPS].astype(np.float64)
    weight = resamples.pseudo_weight
    return _Drawn(count, count.sum(axis=0), np.roll(weight, 1) if other else weight)


def _shares(right: Float64[np.ndarray, " W"], drawn: _Drawn) -> Float64[np.ndarray, "2 B"]:
    """The share that is right in each resample, the pseudo-window being wrong, and right."""
    summed = drawn.sum_of(right)
    shares: Float64[np.ndarray, "2 B"] = (
        np.stack([summed, summed + drawn.pseudo]) / drawn.guarded_total
    )
    return shares


def _agreement(
    value: float,
    lower: Float64[np.ndarray, " B"],
    upper: Float64[np.ndarray, " B"],
    level: float,
    *judged: Judged,
) -> Agreement:
    if min(map(_count_documents, judged)) < MIN_ACTIVE_DOCUMENTS:
        return Agreement(value, interval_reason=TOO_FEW_DOCUMENTS)
    tail = (1 - level) / 2
    low, high = np.quantile(lower, tail), np.quantile(upper, 1 - tail)
    return Agreement(value, interval=Interval(min(float(low), value), max(float(high), value)))


def _count_documents(judged: Judged) -> float:
    """How many evenly used documents the windows are worth: (sum n)^2 / sum n^2 (Kish)."""
    windows = np.bincount(judged.document % N_GROUPS)
    return float(windows.sum() ** 2 / (windows**2).sum())
