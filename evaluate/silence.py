"""What a label's predictions on silent windows cost it: their noise, and the ceiling they set.

At natural density nearly all tokens are silent, so that a little noise on them outweighs all that
is right on the active ones. The ceiling says how much of a low correlation is that alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from .correlation import MeanAndSd, WindowMoments


@dataclass(frozen=True, slots=True)
class Silence:
    """How much of a split is silent, and what is predicted there.

    Attributes:
        share: the share of all tokens that stand in silent windows.
        predicted: of the predictions at those tokens.
    """

    share: float
    predicted: MeanAndSd

    def in_units_of(self, unit: float) -> Silence:
        """The same with predictions multiplied by so much."""
        mean, sd = self.predicted.mean, self.predicted.sd
        return Silence(self.share, MeanAndSd(unit * mean, unit * sd))


def predictions_in_silence(
    moments: WindowMoments, is_silent: Bool[np.ndarray, " W"]
) -> Silence | None:
    """The predictions on silent windows, as they stand for the split; None if there are none."""
    n, p, _, pp, _, _ = moments.sums @ (moments.weight * is_silent)
    if not n:
        return None
    mean, variance = p / n, pp / n - (p / n) ** 2
    unit = moments.predicted
    noise = MeanAndSd(unit.mean + unit.sd * float(mean), unit.sd * max(float(variance), 0.0) ** 0.5)
    return Silence(float(n / (moments.sums[0] @ moments.weight)), noise)


def ceiling(truth: MeanAndSd, silence: Silence) -> float | None:
    """The correlation of a label that is perfect but for such predictions in silence.

    Predictions are p = t in active windows; in silent ones (share q of the tokens, t = 0) they
    have the mean m and the variance s^2, in units of the activation. So cov(p, t) = V - q m E[t]
    with V the variance of t, and var(p) = V - 2 q m E[t] + q s^2 + q (1 - q) m^2, and
    r = cov(p, t) / sqrt(V var(p)). None where p would be constant.
    """
    q, m, s = silence.share, silence.predicted.mean, silence.predicted.sd
    covariance = truth.sd**2 - q * m * truth.mean
    variance = truth.sd**2 - 2 * q * m * truth.mean + q * s**2 + q * (1 - q) * m**2
    if variance <= 0:
        return None
    return float(covariance / (truth.sd * variance**0.5))
