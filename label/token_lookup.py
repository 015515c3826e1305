"""The token lookup: what a feature's activation would be if only the token itself mattered.

Each token's mean activation, over the whole `explain` split as its samples stand for it, pulled
towards the mean of all tokens where it was seen seldom. It needs no model and no key, and is the
null that every other label has to beat. Left out: all context; a feature that reads more than
one token is only as predictable by this as its tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ..store.records import FeatureContexts

# The name of the explainer and of the simulator that are this lookup.
EXPLAINER = "token_lookup"

# How many observations the mean of all tokens counts for: a token seen twice goes half way from
# it to its own mean. Small, because features that follow a token follow it nearly always, yet
# enough that a token seen once beside an activation is not taken for its cause.
SHRINKAGE_TOKENS = 2.0


@dataclass(frozen=True, slots=True)
class TokenMean:
    """A token, the activation expected at it, and how often it was seen."""

    token_id: int
    mean: float
    count: int


@dataclass(frozen=True, slots=True)
class TokenLookup:
    """The activation expected at each token, whatever stands around it.

    Attributes:
        token_ids: the tokens seen, ascending.
        means: the shrunken mean activation of each.
        counts: how often each stands in the kept windows.
        global_mean: the mean activation of all tokens, expected at tokens never seen.
    """

    token_ids: Int32[np.ndarray, " V"]
    means: Float32[np.ndarray, " V"]
    counts: Int64[np.ndarray, " V"]
    global_mean: float

    def predict(self, token_ids: Int32[np.ndarray, "W T"]) -> Float32[np.ndarray, "W T"]:
        """The expected activation at each token; 0 at padding (-1)."""
        unseen = int(self.token_ids[-1]) + 1 if len(self.token_ids) else 0
        table = np.full(unseen + 2, self.global_mean, dtype=np.float32)
        table[self.token_ids] = self.means
        table[-1] = 0.0  # index -1, the padding
        predicted: Float32[np.ndarray, "W T"] = table[np.minimum(token_ids, unseen)]
        return predicted

    def strongest(self, n: int) -> tuple[TokenMean, ...]:
        """The n tokens with the highest means, best first, equal means by token id."""
        rows = np.arange(len(self.means))
        if 0 < n < len(rows):
            rows = np.flatnonzero(self.means >= -np.partition(-self.means, n - 1)[n - 1])
        best = rows[np.argsort(-self.means[rows], kind="stable")][:n]
        return tuple(
            TokenMean(int(self.token_ids[row]), float(self.means[row]), int(self.counts[row]))
            for row in best
        )


def fit_token_lookup(contexts: FeatureContexts) -> TokenLookup:
    """Each token's mean activation over the split that these contexts stand for.

    With w the number of windows of the split that a sampled window stands for (the weights of
    the headline score) and t the activation, a token's own mean is sum(w t) / sum(w) over its
    occurrences, and they are worth n = sum(w)^2 / sum(w^2) observations (Kish). Its expected
    activation is `global_mean + (own mean - global_mean) * n / (n + SHRINKAGE_TOKENS)`.
    """
    active, silent = contexts.active, contexts.silent
    ids = np.concatenate([active.windows.token_ids, silent.windows.token_ids])
    if not (ids >= 0).any():
        nothing = np.empty(0, np.int64)
        return TokenLookup(nothing.astype(np.int32), nothing.astype(np.float32), nothing, 0.0)
    counts = np.bincount(np.add(ids, 1, dtype=np.intp).ravel())[1:]
    token_ids = np.flatnonzero(counts)
    rows_of = np.empty(len(counts), dtype=np.intp)
    rows_of[token_ids] = np.arange(len(token_ids))

    # Nearly all windows weigh the same, and counting is faster than adding: the sums are those
    # of equal weights, corrected where a window's weight is another.
    weights = np.concatenate([active.weights, silent.weights])
    common = float(np.median(weights))
    other = np.flatnonzero(weights != common)
    is_token = ids[other] >= 0
    rows = rows_of[ids[other][is_token]]
    window_weights = np.repeat(weights[other], is_token.sum(axis=1))
    counts = counts[token_ids]
    weight = common * counts + np.bincount(rows, window_weights - common, len(token_ids))
    weight_squared = common**2 * counts + np.bincount(
        rows, window_weights**2 - common**2, len(token_ids)
    )
    window, place = np.nonzero(active.activations)
    activation = np.bincount(
        rows_of[active.windows.token_ids[window, place]],
        active.weights[window] * active.activations[window, place].astype(np.float64),
        len(token_ids),
    )

    global_mean = float(activation.sum() / weight.sum())
    observations = weight**2 / weight_squared
    trust = observations / (observations + SHRINKAGE_TOKENS)
    means = global_mean + (activation / weight - global_mean) * trust
    return TokenLookup(token_ids.astype(np.int32), means.astype(np.float32), counts, global_mean)
