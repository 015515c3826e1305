"""Silent windows that a cheap screen sorted first, and what each that was rated then stands for.

False positives decide a correlation at low density, are rare, and cost as much to find as any
window that is rated. So a screen that costs little (the label's words occur, the token lookup
fires) is run over many silent windows, and of those where it fires, the suspects, more are rated
than their share (double sampling for stratification; Cochran 1977, "Sampling Techniques", 12.2).
The screen only allots: what it misses is found among the others, at the rate at which they are
rated, so that the estimate is right however bad the screen is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from .correlation import Undefined

NO_SUSPECT_RATED = "the screen fires in silent windows and none of these was rated"
NO_OTHER_RATED = "the screen is quiet in silent windows and none of these was rated"


@dataclass(frozen=True, slots=True)
class FirstPhase:
    """Silent windows as a cheap screen sorted them, before any was rated.

    They are a uniform sample of the split's silent windows, and all silent windows that are rated
    are among them.

    Attributes:
        document: a number per document, as in `Design`.
        weight: how many copies the split has of each window.
        is_suspect: where the screen fires.
    """

    document: Int64[np.ndarray, " P"]
    weight: Float64[np.ndarray, " P"]
    is_suspect: Bool[np.ndarray, " P"]


def silent_weights(
    copies: Float64[np.ndarray, " R"],
    is_suspect: Bool[np.ndarray, " R"],
    screened: FirstPhase,
    population: float,
) -> Float64[np.ndarray, " R"] | Undefined:
    """How many silent windows of the split each rated one stands for.

    Rated suspects together stand for the share of the population that suspects were among the
    screened windows, the other rated ones for the rest, each window for as many as its copies
    say. Where the screen fires nowhere, or everywhere, all rated windows share the population.

    Args:
        copies: of each rated silent window.
        is_suspect: where the screen fires, of each rated silent window.
        screened: all that were screened.
        population: how many silent windows the split has, copies counted.

    Returns:
        The weights; or why there are none, if the screen found windows of a kind of which none
        was rated: nothing is known of those.
    """
    require_rated_among_screened(is_suspect, screened)
    missing = unrated_kind(is_suspect, screened)
    if missing:
        return Undefined(missing)
    weight = copies.astype(np.float64)
    for rated, found in ((is_suspect, screened.is_suspect), (~is_suspect, ~screened.is_suspect)):
        if rated.any():
            share = screened.weight[found].sum() / screened.weight.sum()
            weight[rated] *= population * share / weight[rated].sum()
    return weight


def unrated_kind(is_suspect: Bool[np.ndarray, " R"], screened: FirstPhase) -> str | None:
    """Which kind of screened windows none was rated of, as a reason; None where both kinds were.

    A kind that the screen did not find need not be rated.
    """
    if screened.is_suspect.any() and not is_suspect.any():
        return NO_SUSPECT_RATED
    if not screened.is_suspect.all() and is_suspect.all():
        return NO_OTHER_RATED
    return None


def require_rated_among_screened(is_suspect: Bool[np.ndarray, " R"], screened: FirstPhase) -> None:
    """Raises ValueError where more windows of a kind were rated than the screen found."""
    for kind, n_rated, n_found in (
        ("suspects", is_suspect.sum(), screened.is_suspect.sum()),
        ("other windows", (~is_suspect).sum(), (~screened.is_suspect).sum()),
    ):
        if n_rated > n_found:
            raise ValueError(
                f"{n_rated} {kind} were rated, but only {n_found} screened: "
                "rate silent windows that the screen has sorted"
            )
