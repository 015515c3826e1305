"""How far a correlation may be trusted: intervals from resampled documents.

Documents are resampled whole, because the windows of one document are alike: in each resample a
document counts as often as a Poisson(1) number says, drawn once for all features, and the
windows so drawn are scaled back to the exact number of windows of their stratum. (Exponential
weights, the Bayesian bootstrap, would make every resample usable, but cover less where few
documents carry the activations: 84% against 93% of the time at 15, simulated.)

The guard. Where few silent windows were seen and the label fired in none of them, no resample of
them shows a false positive, though the split may hold many, and false positives decide r at low
density. So the lower limit is the lesser of the plain one and of one with a pseudo-window added
to the silent stratum: truth 0, the prediction that of a random active window, its weight from
the standard exponential distribution, as in a Bayesian bootstrap.

The tails. A percentile interval is too narrow by what a normal interval is too narrow beside a t
interval. The tails are made smaller by as much (the expanded percentile interval of Hesterberg
2015, "What teachers should know about the bootstrap"), for the number of documents that carry
the activations: few of the silent ones move r, so that these are the scarce ones.

Documents fall into `N_GROUPS` groups by their number, and groups are resampled. With fewer
documents than groups that is nearly the bootstrap over documents; with more it is one over
larger clusters, which is as valid. So one table of counts serves all features, and a feature's
interval does not depend on which others are scored with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from .correlation import WindowMoments, correlation_of_sums
from .screening import FirstPhase, require_rated_among_screened, unrated_kind

# A prime, so that document numbers in steps of a power of two still spread over all groups.
N_GROUPS = 509

# With fewer documents behind the active windows the interval would cover less than it says:
# 78 to 90% at three, 92 to 97% at six (simulated).
MIN_ACTIVE_DOCUMENTS = 5
TOO_FEW_DOCUMENTS = (
    f"fewer than {MIN_ACTIVE_DOCUMENTS} documents (as evenly used ones) hold the active windows"
)

# A variance below this share of the mean square is the rounding of a constant (float32).
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Interval:
    """The lower and upper limit of a number."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resamples:
    """Random counts, drawn once and shared by every feature.

    Attributes:
        seed: what they were drawn with.
        count: how often each group of documents is drawn in each of B resamples.
        pseudo_weight: the weight of the pseudo-window.
        pseudo_pick: which active window it copies, as a share of their number.
    """

    seed: int
    count: Float32[np.ndarray, "G B"]
    pseudo_weight: Float64[np.ndarray, " B"]
    pseudo_pick: Float64[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.pseudo_weight)


@dataclass(frozen=True, slots=True)
class Design:
    """Where each scored window comes from.

    Attributes:
        document: a number per document, the same wherever the document occurs.
        is_silent: True in the silent stratum, False in the active.
        is_suspect: where a screen of the silent windows fires; None if there was no screen.
        screened: all silent windows that were screened; None likewise.

    Raises:
        ValueError: the screen's two parts do not fit each other or the windows.
    """

    document: Int64[np.ndarray, " W"]
    is_silent: Bool[np.ndarray, " W"]
    is_suspect: Bool[np.ndarray, " W"] | None = None
    screened: FirstPhase | None = None

    def __post_init__(self) -> None:
        if self.is_suspect is None and self.screened is None:
            return
        if self.is_suspect is None or self.screened is None:
            raise ValueError("`is_suspect` and `screened` are given together or not at all")
        if self.is_suspect[~self.is_silent].any():
            raise ValueError("only silent windows are screened, and an active one is a suspect")
        suspects = self.is_suspect[self.is_silent]
        require_rated_among_screened(suspects, self.screened)
        if missing := unrated_kind(suspects, self.screened):
            raise ValueError(missing)


def draw_resamples(seed: int, n_resamples: int = 1000) -> Resamples:
    """Draws the counts of all document groups for so many resamples (at least 100)."""
    if n_resamples < 100:
        raise ValueError(f"{n_resamples} resamples have no tails to read limits from")
    rng = np.random.default_rng(seed)
    return Resamples(
        seed=seed,
        count=rng.poisson(1.0, (N_GROUPS, n_resamples)).astype(np.float32),
        pseudo_weight=rng.standard_exponential(n_resamples),
        pseudo_pick=rng.random(n_resamples),
    )


def guarded_interval(
    moments: WindowMoments, design: Design, resamples: Resamples, level: float = 0.95
) -> Interval | None:
    """The interval of a correlation, its lower limit guarded against unseen false positives.

    None where fewer than `MIN_ACTIVE_DOCUMENTS` documents hold the active windows.
    """
    tail = _tail(design, level)
    if tail is None:
        return None
    plain, guarded = (_limits(r, tail) for r in _resampled(moments, design, resamples))
    value = float(correlation_of_sums(moments.sums @ moments.weight))
    return Interval(min(plain.low, guarded.low, value), max(plain.high, value))


def difference_interval(
    first: WindowMoments,
    second: WindowMoments,
    design: Design,
    resamples: Resamples,
    level: float = 0.95,
) -> Interval | None:
    """The interval of the first correlation less the second, on the same windows.

    Both are taken from the same resamples, so that what moves both does not widen the interval.
    An unseen false positive may be of either and move the difference either way: both limits are
    guarded. None as for `guarded_interval`.
    """
    tail = _tail(design, level)
    if tail is None:
        return None
    differences = _resampled(first, design, resamples) - _resampled(second, design, resamples)
    plain, guarded = (_limits(each, tail) for each in differences)
    value = float(
        correlation_of_sums(first.sums @ first.weight)
        - correlation_of_sums(second.sums @ second.weight)
    )
    return Interval(
        min(plain.low, guarded.low, value),
        max(plain.high, guarded.high, value),
    )


def _resampled(
    moments: WindowMoments, design: Design, resamples: Resamples
) -> Float64[np.ndarray, "2 B"]:
    """The correlation in each resample, plain and with the pseudo-window.

    NaN where it is undefined: a resample may lack a stratum, or all that varies in it. The
    products are in float32, from which r is within 1e-5 of float64 (tested); resampling itself
    is uncertain by 1e-2.
    """
    is_active, groups = ~design.is_silent, design.document % N_GROUPS
    of_window = np.vstack([np.ones_like(moments.weight), moments.sums])
    weight = moments.weight[is_active]
    active = _drawn(of_window[:, is_active], weight, groups[is_active], resamples)
    active = _scaled_to(weight.sum(), active)[1:]
    if is_active.all():
        return np.stack([_correlations(active)] * 2)

    zero = -moments.true.mean / moments.true.sd  # the truth 0, measured as t is
    no_truth = of_window[[0, 1, 2, 4]]  # 1, n, p and pp
    in_silence = _screened_silence if design.screened else _silence
    plain, guarded = (
        _correlations(active + _with_truth(zero, silent))
        for silent in in_silence(no_truth, moments.weight, design, resamples)
    )
    return np.stack([plain, guarded])


def _silence(
    rows: Float64[np.ndarray, "4 W"],
    weight: Float64[np.ndarray, " W"],
    design: Design,
    resamples: Resamples,
) -> tuple[Float64[np.ndarray, "4 B"], Float64[np.ndarray, "4 B"]]:
    """The silent stratum's sums in each resample, plain and with the pseudo-window."""
    is_silent = design.is_silent
    population = weight[is_silent].sum()
    groups = design.document[is_silent] % N_GROUPS
    drawn = _drawn(rows[:, is_silent], weight[is_silent], groups, resamples)
    pseudo = _pseudo_windows(rows[:, ~is_silent], weight[is_silent].mean(), resamples)
    return _scaled_to(population, drawn), _scaled_to(population, drawn + pseudo)


def _screened_silence(
    rows: Float64[np.ndarray, "4 W"],
    weight: Float64[np.ndarray, " W"],
    design: Design,
    resamples: Resamples,
) -> tuple[Float64[np.ndarray, "4 B"], Float64[np.ndarray, "4 B"]]:
    """The same of suspects and others apart, each for its share of the screened windows drawn."""
    first, suspects = design.screened, design.is_suspect
    assert first is not None and suspects is not None
    both = np.stack([first.is_suspect, ~first.is_suspect]).astype(np.float64)
    found = _drawn(both, first.weight, first.document % N_GROUPS, resamples)
    found *= weight[design.is_silent].sum() / found.sum(axis=0)
    plain, guarded = np.zeros((2, 4, len(resamples)))
    kinds = (~suspects & design.is_silent, found[1]), (suspects, found[0])
    for shift, (is_kind, population) in enumerate(each for each in kinds if each[0].any()):
        groups = design.document[is_kind] % N_GROUPS
        drawn = _drawn(rows[:, is_kind], weight[is_kind], groups, resamples)
        pseudo = _pseudo_windows(
            rows[:, ~design.is_silent], weight[is_kind].mean(), resamples, shift
        )
        plain += np.where(population > 0, _scaled_to(population, drawn), 0.0)
        guarded += _scaled_to(population, drawn + pseudo)
    return plain, guarded


def _pseudo_windows(
    active: Float64[np.ndarray, "K A"], weight: float, resamples: Resamples, shift: int = 0
) -> Float64[np.ndarray, "K B"]:
    """The pseudo-window of each resample; with another shift, one that is independent of it."""
    picked = (np.roll(resamples.pseudo_pick, shift) * active.shape[1]).astype(np.intp)
    pseudo: Float64[np.ndarray, "K B"]
    pseudo = active[:, picked] * (np.roll(resamples.pseudo_weight, shift) * weight)
    return pseudo


def _drawn(
    rows: Float64[np.ndarray, "K W"],
    weight: Float64[np.ndarray, " W"],
    groups: Int64[np.ndarray, " W"],
    resamples: Resamples,
) -> Float64[np.ndarray, "K B"]:
    """The weighted sums of rows over the windows that each resample draws."""
    count = resamples.count
    if len(groups) < N_GROUPS // 4:
        used, groups = np.unique(groups, return_inverse=True)
        count = count[used]
    grouped = np.stack([np.bincount(groups, row * weight, len(count)) for row in rows])
    drawn: Float64[np.ndarray, "K B"] = (grouped.astype(np.float32) @ count).astype(np.float64)
    return drawn


def _scaled_to(
    n_windows: float | Float64[np.ndarray, " B"], drawn: Float64[np.ndarray, "K B"]
) -> Float64[np.ndarray, "K B"]:
    """The drawn sums, of which the first counts windows, for so many windows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled: Float64[np.ndarray, "K B"] = drawn * (n_windows / drawn[0])
    return scaled


def _with_truth(zero: float, sums: Float64[np.ndarray, "4 B"]) -> Float64[np.ndarray, "6 B"]:
    """n, p, t, pp, tt and pt of windows where t is `zero` throughout, from 1, n, p and pp."""
    _, n, p, pp = sums
    return np.stack([n, p, zero * n, pp, zero * zero * n, zero * p])


def _correlations(sums: Float64[np.ndarray, "6 B"]) -> Float64[np.ndarray, " B"]:
    n, p, t, pp, tt, _ = sums
    varies = (pp - p * p / n > _ROUNDING * pp) & (tt - t * t / n > _ROUNDING * tt)
    return correlation_of_sums(np.where(varies, sums, np.nan))


def _tail(design: Design, level: float) -> float | None:
    """The share of resamples beyond either limit; None with too few documents for any.

    Documents count by Kish's rule, (sum n)^2 / sum n^2 over their active windows: sixty windows
    of which fifty are from one document are worth little more than that document.
    """
    windows = np.bincount(design.document[~design.is_silent] % N_GROUPS)
    documents = float(windows.sum() ** 2 / max((windows**2).sum(), 1))
    if documents < MIN_ACTIVE_DOCUMENTS:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    freedom = documents - 1
    # Student's t from z (Cornish and Fisher; Abramowitz and Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * (documents / freedom) ** 0.5)


def _limits(values: Float64[np.ndarray, " B"], tail: float) -> Interval:
    """The percentile interval of the resamples that have a value."""
    values = np.sort(values[np.isfinite(values)])
    place = tail * (len(values) - 1)
    low, high = np.interp([place, len(values) - 1 - place], np.arange(len(values)), values)
    return Interval(float(low), float(high))
