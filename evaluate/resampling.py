"""Correlations of resampled documents: as they are drawn, and guarded against what was not seen.

Documents are resampled whole, because the windows of one document are alike: in each resample a
document counts as often as a Poisson(1) number says, drawn once for all features, and the
windows so drawn are scaled back to the exact number of windows of their stratum. (Exponential
weights, the Bayesian bootstrap, would make every resample usable, but cover less where few
documents carry the activations: 84% against 93% of the time at 15, simulated.)

The guard. Where few silent windows were seen and the label fired in none of them, no resample of
them shows a false positive, though the split may hold many, and false positives decide r at low
density. And where few active windows were seen and the label missed none, no resample shows a
miss. So each resample is also taken with a pseudo-window in each stratum: among the silent ones
the truth 0 beside the prediction of a random active window; among the active ones the truth of a
random one beside the mean prediction in silence. Their weights are the mean weight of a window of
the stratum times a standard exponential number, as in a Bayesian bootstrap.

Screened silence. Where a screen sorted silent windows before some were rated (`screening`), both
phases are resampled by the same counts: the share of suspects varies as the estimate that it is,
and suspects and others are scaled each to its share of the silent windows. Each kind has a
pseudo-window of its own, that of the others weighing most: what a screen overlooks is found only
there.

Documents fall into `N_GROUPS` groups by their number, and groups are resampled. With fewer
documents than groups that is nearly the bootstrap over documents; with more it is one over
larger clusters, which is as valid. So one table of counts serves all features, and a feature's
interval does not depend on which others are scored with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from .correlation import WindowMoments, correlation_of_sums
from .screening import FirstPhase, require_rated_among_screened, unrated_kind

# A prime, so that document numbers in steps of a power of two still spread over all groups.
N_GROUPS = 509

# A variance below this share of the mean square is the rounding of a constant (float32).
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Resamples:
    """Random counts, drawn once and shared by every feature.

    Attributes:
        seed: what they were drawn with.
        count: how often each group of documents is drawn in each of B resamples.
        pseudo_weight: the weight of a pseudo-window, in windows.
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


@dataclass(frozen=True, slots=True)
class Resampled:
    """Values in each resample, NaN where they are undefined: as drawn, and with pseudo-windows."""

    plain: Float64[np.ndarray, "*K B"]
    guarded: Float64[np.ndarray, "*K B"]


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


def resample(moments: WindowMoments, design: Design, resamples: Resamples) -> Resampled:
    """The correlation in each resample.

    It is undefined where a resample lacks a stratum, or all that varies in it. A split without
    silence needs no guard. The products are in float32, from which r is within 1e-5 of float64
    (tested); resampling itself is uncertain by 1e-2.
    """
    is_active, groups = ~design.is_silent, design.document % N_GROUPS
    of_window = np.vstack([np.ones_like(moments.weight), moments.sums])
    weight = moments.weight[is_active]
    active = drawn_sums(of_window[:, is_active], weight, groups[is_active], resamples)
    population = weight.sum()
    plain = _scaled_to(population, active)[1:]
    if is_active.all():
        return Resampled(_correlations(plain), _correlations(plain))

    n, p = moments.sums[:2] @ (moments.weight * design.is_silent)
    missed = _with_prediction(p / n, of_window[:, is_active])
    pseudo = _pseudo_windows(missed, weight.mean(), resamples, shift=2)
    guarded = _scaled_to(population, active + pseudo)[1:]

    zero = -moments.true.mean / moments.true.sd  # the truth 0, measured as t is
    no_truth = of_window[[0, 1, 2, 4]]  # 1, n, p and pp
    in_silence = _screened_silence if design.screened else _silence
    silent = in_silence(no_truth, moments.weight, design, resamples)
    return Resampled(
        _correlations(plain + _with_truth(zero, silent.plain)),
        _correlations(guarded + _with_truth(zero, silent.guarded)),
    )


def _silence(
    rows: Float64[np.ndarray, "4 W"],
    weight: Float64[np.ndarray, " W"],
    design: Design,
    resamples: Resamples,
) -> Resampled:
    """The sums over the silent stratum."""
    is_silent = design.is_silent
    population = weight[is_silent].sum()
    groups = design.document[is_silent] % N_GROUPS
    drawn = drawn_sums(rows[:, is_silent], weight[is_silent], groups, resamples)
    pseudo = _pseudo_windows(rows[:, ~is_silent], weight[is_silent].mean(), resamples)
    return Resampled(_scaled_to(population, drawn), _scaled_to(population, drawn + pseudo))


def _screened_silence(
    rows: Float64[np.ndarray, "4 W"],
    weight: Float64[np.ndarray, " W"],
    design: Design,
    resamples: Resamples,
) -> Resampled:
    """The same of suspects and others apart, each for its share of the screened windows drawn."""
    first, is_suspect, is_silent = design.screened, design.is_suspect, design.is_silent
    assert first is not None and is_suspect is not None
    both = np.stack([~first.is_suspect, first.is_suspect]).astype(np.float64)
    found = drawn_sums(both, first.weight, first.document % N_GROUPS, resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        populations = found * (weight[is_silent].sum() / found.sum(axis=0))
    total = Resampled(*np.zeros((2, 4, len(resamples))))
    kinds = zip((is_silent & ~is_suspect, is_suspect), populations, strict=True)
    # Where all are of one kind, it has the pseudo-window of a design without a screen.
    for shift, (is_kind, population) in enumerate(kind for kind in kinds if kind[0].any()):
        groups, each = design.document[is_kind] % N_GROUPS, weight[is_kind]
        drawn = drawn_sums(rows[:, is_kind], each, groups, resamples)
        pseudo = _pseudo_windows(rows[:, ~is_silent], each.mean(), resamples, shift)
        total.plain[:] += np.where(population > 0, _scaled_to(population, drawn), 0.0)
        total.guarded[:] += _scaled_to(population, drawn + pseudo)
    return total


def _pseudo_windows(
    copied: Float64[np.ndarray, "K A"], weight: float, resamples: Resamples, shift: int = 0
) -> Float64[np.ndarray, "K B"]:
    """The pseudo-window of each resample, one of these; independent at each shift.

    A shift takes the random numbers of another resample.
    """
    place = np.arange(-shift, len(resamples) - shift)
    picked = (resamples.pseudo_pick[place] * copied.shape[1]).astype(np.intp)
    pseudo: Float64[np.ndarray, "K B"]
    pseudo = copied[:, picked] * (resamples.pseudo_weight[place] * weight)
    return pseudo


def drawn_sums(
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


def _with_prediction(
    constant: float, windows: Float64[np.ndarray, "7 A"]
) -> Float64[np.ndarray, "7 A"]:
    """1, n, p, t, pp, tt and pt of the same windows, were p so much throughout."""
    one, n, _, t, _, tt, _ = windows
    return np.stack([one, n, constant * n, t, constant * constant * n, tt, constant * t])


def _with_truth(zero: float, sums: Float64[np.ndarray, "4 B"]) -> Float64[np.ndarray, "6 B"]:
    """n, p, t, pp, tt and pt of windows where t is `zero` throughout, from 1, n, p and pp."""
    _, n, p, pp = sums
    return np.stack([n, p, zero * n, pp, zero * zero * n, zero * p])


def _correlations(sums: Float64[np.ndarray, "6 B"]) -> Float64[np.ndarray, " B"]:
    n, p, t, pp, tt, _ = sums
    varies = (pp - p * p / n > _ROUNDING * pp) & (tt - t * t / n > _ROUNDING * tt)
    return correlation_of_sums(np.where(varies, sums, np.nan))
