"""Pearson correlation of predicted and true activations, or the reason why there is none.

The headline `correlation` weighs each window by the number of windows of the split that it
stands for; the classic `ev_correlation` (Bills et al. 2023) takes the tokens of a few windows as
they are. What is undefined is said to be so: a constant has no correlation, and rounding must
not make it 0 or -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

# With fewer, r says where one or two tokens happened to lie. A feature that fires once in each
# of its strongest windows still has an `ev_correlation`.
MIN_ACTIVE_TOKENS = 3

NOTHING_SIMULATED = "nothing was simulated"
NOT_FINITE = "a predicted or true activation is not finite"
CONSTANT_TRUTH = "the true activation is the same at every token"
CONSTANT_PREDICTION = "the predicted activation is the same at every token"
TOO_FEW_ACTIVE = f"the feature fires at fewer than {MIN_ACTIVE_TOKENS} of the tokens"

# Windows are added up so many at a time, so that their float64 copies stay in the cache.
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation in [-1, 1], or another figure of agreement; or why it is undefined."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Undefined:
    """Why tokens have no correlation."""

    reason: str


@dataclass(frozen=True, slots=True)
class MeanAndSd:
    """Of a population of tokens: the mean and the standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class WindowMoments:
    """What a correlation, and any resampling of its windows, needs to know of each window.

    Sums over the window's tokens of prediction p and truth t, both measured from their mean over
    all tokens and in their standard deviation: pooled means are then near 0, so that no variance
    is a difference of large numbers, and float32 holds the sums well.

    Attributes:
        weight: how many windows of the population each window stands for.
        sums: the six rows n (tokens), p, t, pp, tt and pt.
        predicted, true: mean and standard deviation that p and t are measured by.
    """

    weight: Float64[np.ndarray, " W"]
    sums: Float64[np.ndarray, "6 W"]
    predicted: MeanAndSd
    true: MeanAndSd


def correlation(
    predicted: Float[np.ndarray, "W T"],
    truth: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
    weight: Float[np.ndarray, " W"],
) -> Correlation:
    """The correlation over all tokens, each weighing as much as its window."""
    return correlation_of(window_moments(predicted, truth, is_token, weight))


def ev_correlation(
    predicted: Float[np.ndarray, "W T"],
    truth: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
) -> Correlation:
    """The correlation over the concatenated tokens, all weighing the same, truth as it is."""
    p, t = predicted[is_token].astype(np.float64), truth[is_token].astype(np.float64)
    if not len(p):
        return Correlation(None, NOTHING_SIMULATED)
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        return Correlation(None, NOT_FINITE)
    if t.max() == t.min():
        return Correlation(None, CONSTANT_TRUTH)
    if np.count_nonzero(t > 0) < MIN_ACTIVE_TOKENS:
        return Correlation(None, TOO_FEW_ACTIVE)
    if p.max() == p.min():
        return Correlation(None, CONSTANT_PREDICTION)
    p -= p.mean()
    t -= t.mean()
    r = float(p @ t / np.sqrt((p @ p) * (t @ t)))
    return Correlation(min(max(r, -1.0), 1.0))


def correlation_of(moments: WindowMoments | Undefined) -> Correlation:
    """The correlation that moments amount to, or the reason why there are none."""
    if isinstance(moments, Undefined):
        return Correlation(None, moments.reason)
    return Correlation(float(correlation_of_sums(moments.sums @ moments.weight)))


def window_moments(
    predicted: Float[np.ndarray, "W T"],
    truth: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
    weight: Float[np.ndarray, " W"],
) -> WindowMoments | Undefined:
    """The moments of each window, or why no correlation of them is defined.

    Prediction and truth are 0 at padding, as everywhere.
    """
    weights = weight.astype(np.float64)
    if not (weights > 0).all():
        raise ValueError("a window that stands for nothing cannot be scored: drop it")
    n = _row_sums(is_token)
    if not n.any():
        return Undefined(NOTHING_SIMULATED)
    # In most windows the truth is 0 throughout: only the others are added up token by token.
    fires = truth.any(axis=1)
    truth_fires, is_token_fires = truth[fires], is_token[fires]
    with np.errstate(invalid="ignore", over="ignore"):
        # About the mean is near enough here: exact means come of the sums.
        p_origin, t_origin = (float(v.sum() / n.sum()) for v in (predicted, truth_fires))
        p = _add_up(p_origin, predicted, is_token, n)
        t = _add_up(t_origin, truth_fires, is_token_fires, n[fires])
        p_sum, t_sum = p.of_values, -t_origin * n
        tt, pt = t_origin**2 * n, -t_origin * p_sum
        t_sum[fires], tt[fires] = t.of_values, t.of_squares
        pt[fires] = _row_products(
            _measured_from(p_origin, predicted[fires], is_token_fires, n[fires]),
            _measured_from(t_origin, truth_fires, is_token_fires, n[fires]),
        )
    sums = np.stack([n, p_sum, t_sum, p.of_squares, tt, pt])
    if not np.isfinite(sums).all():
        return Undefined(NOT_FINITE)
    if _is_constant(truth, is_token):
        return Undefined(CONSTANT_TRUTH)
    if np.count_nonzero(truth_fires > 0) < MIN_ACTIVE_TOKENS:
        return Undefined(TOO_FEW_ACTIVE)
    if _is_constant(predicted, is_token):
        return Undefined(CONSTANT_PREDICTION)
    return _in_standard_units(sums, weights, p_origin, t_origin)


def correlation_of_sums(sums: Float64[np.ndarray, "6 ..."]) -> Float64[np.ndarray, "..."]:
    """The correlation that weighted sums of n, p, t, pp, tt and pt amount to."""
    n, p, t, pp, tt, pt = sums
    variances = (pp - p * p / n) * (tt - t * t / n)
    r: Float64[np.ndarray, "..."] = np.clip((pt - p * t / n) / np.sqrt(variances), -1.0, 1.0)
    return r


@dataclass(frozen=True, slots=True)
class _Sums:
    """By window, the sum of values and of their squares, both measured from an origin."""

    of_values: Float64[np.ndarray, " W"]
    of_squares: Float64[np.ndarray, " W"]


def _add_up(
    origin: float,
    values: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
    n: Float64[np.ndarray, " W"],
) -> _Sums:
    sums = np.empty((2, len(values)))
    for start in range(0, len(values), _BLOCK):
        rows = slice(start, start + _BLOCK)
        distances = _measured_from(origin, values[rows], is_token[rows], n[rows])
        sums[0, rows] = _row_sums(distances)
        sums[1, rows] = _row_products(distances, distances)
    return _Sums(*sums)


def _measured_from(
    origin: float,
    values: Float[np.ndarray, "W T"],
    is_token: Bool[np.ndarray, "W T"],
    n: Float64[np.ndarray, " W"],
) -> Float64[np.ndarray, "W T"]:
    """The values less the origin; 0 at padding."""
    distances: Float64[np.ndarray, "W T"] = np.subtract(values, origin, dtype=np.float64)
    padded = np.flatnonzero(n < is_token.shape[1])  # few, as a rule
    distances[padded] *= is_token[padded]
    return distances


def _in_standard_units(
    sums: Float64[np.ndarray, "6 W"],
    weights: Float64[np.ndarray, " W"],
    p_origin: float,
    t_origin: float,
) -> WindowMoments:
    """The moments measured from the exact means, in standard deviations."""
    n, p, t, pp, tt, pt = sums
    tokens = weights @ n
    p_mean, t_mean = float(weights @ p / tokens), float(weights @ t / tokens)
    centred = np.stack(
        [
            n,
            p - p_mean * n,
            t - t_mean * n,
            pp - 2 * p_mean * p + p_mean**2 * n,
            tt - 2 * t_mean * t + t_mean**2 * n,
            pt - p_mean * t - t_mean * p + p_mean * t_mean * n,
        ]
    )
    p_sd, t_sd = (float(np.sqrt(weights @ squares / tokens)) for squares in centred[3:5])
    units = np.array([1.0, p_sd, t_sd, p_sd**2, t_sd**2, p_sd * t_sd])
    return WindowMoments(
        weight=weights,
        sums=centred / units[:, None],
        predicted=MeanAndSd(p_origin + p_mean, p_sd),
        true=MeanAndSd(t_origin + t_mean, t_sd),
    )


def _is_constant(values: Float[np.ndarray, "W T"], is_token: Bool[np.ndarray, "W T"]) -> bool:
    """Whether the highest value at a token is the lowest (a variance would not tell)."""
    first = values.flat[int(np.argmax(is_token))]
    return not ((values != first) & is_token).any()


def _row_sums(values: Shaped[np.ndarray, "W T"]) -> Float64[np.ndarray, " W"]:
    sums: Float64[np.ndarray, " W"] = values @ np.ones(values.shape[1])  # half the time of sum()
    return sums


def _row_products(
    a: Float64[np.ndarray, "W T"], b: Float64[np.ndarray, "W T"]
) -> Float64[np.ndarray, " W"]:
    products: Float64[np.ndarray, " W"] = np.einsum("wt,wt->w", a, b)
    return products
