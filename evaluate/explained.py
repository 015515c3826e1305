"""How much of an activation predictions explain, in its own units: squares, and deviations.

As in the code that came with Bills et al. (2023, "Language models can explain neurons in language
models"), neither is centred: what predicts zero everywhere explains 0, and what is further off
than zero is negative. Predictions on a scale of their own have to be brought to the activation's
units before, by something that is not fitted to the scored tokens.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from .correlation import NOT_FINITE, NOTHING_SIMULATED, Correlation

SILENT_TRUTH = "the feature is active at none of the tokens"


def r_squared(
    predicted: Float[np.ndarray, "W T"],
    truth: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
) -> Correlation:
    """1 - sum (t - p)^2 / sum t^2, over the concatenated tokens; or why it is undefined."""
    return _explained(predicted, truth, is_token, 2)


def absolute_deviation_explained(
    predicted: Float[np.ndarray, "W T"],
    truth: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
) -> Correlation:
    """1 - sum |t - p| / sum |t|, over the concatenated tokens; or why it is undefined."""
    return _explained(predicted, truth, is_token, 1)


def _explained(
    predicted: Float[np.ndarray, "W T"],
    truth: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
    power: int,
) -> Correlation:
    p, t = predicted[is_token].astype(np.float64), truth[is_token].astype(np.float64)
    if not len(p):
        return Correlation(None, NOTHING_SIMULATED)
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return Correlation(None, NOT_FINITE)
    whole = float((np.abs(t) ** power).sum())
    if not whole:
        return Correlation(None, SILENT_TRUTH)
    return Correlation(1.0 - float((np.abs(t - p) ** power).sum()) / whole)
