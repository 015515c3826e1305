"""Which of a feature's contexts an explainer is shown, and how strong each token is said to be.

Half are the windows with the highest peaks, half are spread over the quantiles of the uniform
sample: labels from top windows alone are too narrow (Paulo et al. 2024, "Automatically
interpreting millions of features in large language models": .77 with quantiles, .73 with top
windows only). The choice depends on the stored contexts and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ..store.records import FeatureContexts, Stratum

MAX_STRENGTH = 10


@dataclass(frozen=True, slots=True)
class ChosenContexts:
    """The contexts to show, in the order in which they are shown.

    Attributes:
        window_ids: names of the windows.
        token_ids: padded with -1.
        activations: the feature's, 0 at padding.
        strengths: the activations as integers, `scale_activations` over these contexts.
    """

    window_ids: tuple[int, ...]
    token_ids: Int32[np.ndarray, "K T"]
    activations: Float32[np.ndarray, "K T"]
    strengths: Int64[np.ndarray, "K T"]

    def __len__(self) -> int:
        return len(self.window_ids)


def choose_contexts(contexts: FeatureContexts, n: int) -> ChosenContexts:
    """At most n contexts: top windows and windows of the sample in turn, the strongest first.

    Of the sample are taken those at the middle of n / 2 equal groups by peak activation, its
    distinct windows counting alike, without windows whose text is shown as a top one. Where one
    kind has too few, the other has more. So that whoever drops contexts from the end keeps both
    kinds and all strengths, the groups come in an order of which every beginning is spread out.
    """
    tops = _best_first(_firing(contexts.top))
    top = _take(tops, np.arange(min(n - n // 2, len(tops))))
    pool = _best_first(_unlike(_firing(contexts.active), top))
    sample = _take(pool, _spread_rows(len(pool), n - len(top)))
    spare = _unlike(_unlike(tops, top), sample)
    more = _take(spare, np.arange(min(n - len(top) - len(sample), len(spare))))

    order = _in_turn(len(top) + len(more), len(sample))
    shown = [top, more, sample]
    window_ids = np.concatenate([each.windows.window_id for each in shown])[order]
    token_ids = np.concatenate([each.windows.token_ids for each in shown])[order]
    activations = np.concatenate([each.activations for each in shown])[order]
    return ChosenContexts(
        tuple(window_ids.tolist()), token_ids, activations, scale_activations(activations)
    )


def scale_activations(activations: Float32[np.ndarray, "K T"]) -> Int64[np.ndarray, "K T"]:
    """Activations as integers: `min(10, floor(10 * relu(x) / max))`, max over all of them.

    As Bills et al. (2023, "Language models can explain neurons in language models") show them
    to the explainer. All are 0 where none is above 0.
    """
    # Ratios of 24-bit numbers are told apart from integers in 53 bits: the floor is exact.
    raised = np.maximum(activations.astype(np.float64), 0)
    highest = raised.max(initial=0)
    if highest == 0:
        return np.zeros(activations.shape, np.int64)
    scaled = np.floor(MAX_STRENGTH * raised / highest)
    strengths: Int64[np.ndarray, "K T"] = np.minimum(scaled, MAX_STRENGTH).astype(np.int64)
    return strengths


def _firing(stratum: Stratum) -> Stratum:
    return _take(stratum, np.flatnonzero((stratum.activations > 0).any(axis=1)))


def _take(stratum: Stratum, rows: Int64[np.ndarray, " N"]) -> Stratum:
    return Stratum(
        stratum.windows.take(rows), stratum.activations[rows], stratum.population_windows
    )


def _best_first(stratum: Stratum) -> Stratum:
    peaks = stratum.activations.max(axis=1, initial=0)
    return _take(stratum, np.lexsort([stratum.windows.window_id, -peaks]))


def _unlike(stratum: Stratum, shown: Stratum) -> Stratum:
    """The windows whose text is none of the shown ones'."""
    is_shown = np.isin(stratum.windows.token_hash, shown.windows.token_hash)
    return _take(stratum, np.flatnonzero(~is_shown))


def _spread_rows(n_rows: int, n: int) -> Int64[np.ndarray, " N"]:
    """The middle rows of n equal groups of rows, every beginning of them spread out."""
    n = min(n, n_rows)
    # Counting with the binary digits reversed halves the widest gap again and again.
    bits = max(n - 1, 0).bit_length()
    groups = sorted(range(n), key=lambda group: f"{group:0{bits}b}"[::-1])
    return np.array([(2 * group + 1) * n_rows // (2 * n) for group in groups], np.int64)


def _in_turn(n_first: int, n_second: int) -> Int64[np.ndarray, " N"]:
    """Numbers of rows of which n_first come first, taken from either part in turn."""
    pairs = zip_longest(range(n_first), range(n_first, n_first + n_second))
    return np.array([row for row in chain(*pairs) if row is not None], np.int64)
