"""The output tokens that features raise and lower most, for many features at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb

from .feature_page import ShownToken


class OutputEffects(NamedTuple):
    """What one feature does to the output: the tokens it raises and lowers most, in this order."""

    raised: tuple[ShownToken, ...]
    lowered: tuple[ShownToken, ...]


def read_output_effects(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: range
) -> dict[int, OutputEffects]:
    """Of consecutive features, those of which it is known; `collect` works it out on request."""
    rows = connection.execute(
        """
        SELECT feature, top_tokens_positive, top_logits_positive, top_tokens_negative,
               top_logits_negative
        FROM features
        WHERE sae_id = $sae AND feature BETWEEN $first AND $last
            AND top_tokens_positive IS NOT NULL
        """,
        {"sae": sae_id, "first": features.start, "last": features.stop - 1},
    ).fetchall()
    return {
        feature: OutputEffects(shown_tokens(raised, up), shown_tokens(lowered, down))
        for feature, raised, up, lowered, down in rows
    }


def shown_tokens(
    texts: Sequence[str] | None, logits: Sequence[float] | None
) -> tuple[ShownToken, ...]:
    """Tokens with their values, as two columns have them."""
    texts = texts or ()
    # A run of an older version has the tokens without their logits.
    values: Sequence[float | None] = logits or [None] * len(texts)
    return tuple(ShownToken(*each) for each in zip(texts, values, strict=True))
