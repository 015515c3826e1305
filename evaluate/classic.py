"""Which windows the scores of the literature are taken over.

The classic ones (Bills et al. 2023) are taken over five of the strongest and five random windows,
their tokens concatenated. They are kept for comparison: top-and-random rewards labels that are too
broad. Beside them stand quarters of the active windows, by strength: many labels hold for the
strongest activations only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Shaped

from ..store.records import FeatureContexts, Stratum, content_hash

N_WINDOWS = 5
N_QUARTERS = 4

Rows = npt.NDArray[np.intp]


def draw_random_windows(
    contexts: FeatureContexts,
    seed: int,
    n: int = N_WINDOWS,
    silent_weights: Float64[np.ndarray, " S"] | None = None,
) -> Rows:
    """Windows drawn uniformly from the whole split: rows of active, then silent, as one table.

    Each of the n is from the active stratum with the probability of that stratum's share of the
    split's windows; within a stratum windows are drawn without replacement, a window that occurs
    k times being k times as likely. The draw depends on seed and feature alone, so that all
    labels of a feature are compared on the same windows.

    Args:
        contexts: what is drawn from.
        seed: together with the feature it decides the draw.
        n: how many.
        silent_weights: how many windows each silent one stands for, where some kinds of them are
            there more often than in the split; else its copies say it.
    """
    rng = np.random.default_rng([seed, int(content_hash(str(contexts.feature_id)), 16)])
    active, silent = contexts.active, contexts.silent
    population = active.population_windows + silent.population_windows
    n_active = int(rng.binomial(n, active.population_windows / population)) if population else 0
    return np.concatenate(
        [
            _draw(active.windows.copies, n_active, rng),
            len(active)
            + _draw(
                silent.windows.copies if silent_weights is None else silent_weights,
                n - n_active,
                rng,
            ),
        ]
    )


def _draw(weights: Shaped[np.ndarray, " S"], n: int, rng: np.random.Generator) -> Rows:
    """Rows drawn without replacement, in proportion to weights (Efraimidis and Spirakis 2006)."""
    return np.argsort(rng.standard_exponential(len(weights)) / weights)[:n]


def quarters_by_peak(active: Stratum) -> list[Rows]:
    """The rows of the active sample in four groups of one size, those of the lowest peaks first.

    Equal peaks keep their order, which was drawn by hash. Fewer than four windows are no quarters.
    """
    if len(active) < N_QUARTERS:
        return [np.empty(0, dtype=np.intp)] * N_QUARTERS
    order = np.argsort(active.activations.max(axis=1), kind="stable")
    return np.array_split(order, N_QUARTERS)
