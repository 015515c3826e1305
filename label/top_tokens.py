"""The tokens at which a feature is strongest, as dashboards list them.

They are those of the token lookup: means over the `explain` split, of which the kept windows are
a sample with known weights, pulled towards the mean of all tokens where a token was seen seldom.
A plain mean would put tokens first that stood once beside a strong activation. Nothing of
`select` or `score` is looked at, so that a label may be compared with the list, or written from
it, and still be scored on unseen text. Left out: output tokens (`extract/logit_effects.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from ..store.records import FeatureContexts
from .token_lookup import TokenMean, fit_token_lookup

N_TOP_TOKENS = 10


def top_tokens(contexts: FeatureContexts, n: int = N_TOP_TOKENS) -> tuple[TokenMean, ...]:
    """The n tokens with the highest mean activation, best first, equal means by token id.

    Only tokens above the mean of all tokens are listed, so there may be fewer, and none where
    the feature never fires.

    Args:
        contexts: of the `explain` split.
        n: at most so many.

    Returns:
        With each token's shrunken mean (`fit_token_lookup`) and how often it stands in the
        windows that were looked at, firing or not.
    """
    if not contexts.active.activations.any():
        return ()
    lookup = fit_token_lookup(contexts)
    return tuple(token for token in lookup.strongest(n) if token.mean > lookup.global_mean)


def top_tokens_table(features: Iterable[FeatureContexts]) -> pa.Table:
    """One row a feature: its number, and token ids, means and counts as lists."""
    rows = [
        {
            "feature": contexts.feature_id.feature,
            "token_ids": [token.token_id for token in found],
            "means": [token.mean for token in found],
            "counts": [token.count for token in found],
        }
        for contexts in features
        for found in [top_tokens(contexts)]
    ]
    return pa.Table.from_pylist(rows, _ROWS)


_ROWS = pa.schema(
    {
        "feature": pa.int32(),
        "token_ids": pa.list_(pa.int32()),
        "means": pa.list_(pa.float32()),
        "counts": pa.list_(pa.int64()),
    }
)
