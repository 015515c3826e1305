"""The windows kept for a feature, token by token, as its page shows them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .records import ContextKind, FeatureId
from .splits import Split

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ShownContext:
    """A window kept for the feature, token by token.

    Attributes:
        peak: the largest activation.
        weight: windows of the split it stands for; None for a top window.
        prefix: the tokens before it, never scored.
        tokens, activations: equally many; 0 where the feature is off.
    """

    kind: str
    rank: int
    split: str
    window_id: int
    doc_id: str
    start: int
    peak: float
    weight: float | None
    prefix: tuple[str, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class KeptContexts:
    """Contexts of one split and kind, and how many there are of each.

    Attributes:
        counts: by split and kind; those of which there are none are left out.
    """

    contexts: tuple[ShownContext, ...]
    counts: dict[tuple[str, str], int]


def read_contexts(
    connection: duckdb.DuckDBPyConnection,
    feature_id: FeatureId,
    split: Split,
    kind: ContextKind,
    n: int | None = None,
) -> KeptContexts:
    """The contexts of a split and kind by rank: the first n, or all."""
    # All of the feature's: reading them twice, also to count them, takes longer.
    rows = connection.execute(
        """
        SELECT window_id, kind, rank, split, max_activation, weight, positions, activations
        FROM contexts WHERE sae_id = $1 AND feature = $2 ORDER BY rank
        """,
        [feature_id.sae_id, feature_id.feature],
    ).fetchall()
    kept = [row for row in rows if (row[3], row[1]) == (split, kind)][:n]
    # By themselves: joined to the contexts, half a million windows take five times as long.
    windows = connection.execute(
        """
        SELECT window_id, doc_id, start, tokenizer, prefix_token_ids, token_ids FROM windows
        WHERE window_id IN (SELECT unnest($1::UBIGINT[]))
        """,
        [[window_id for window_id, *_ in kept]],
    ).fetchall()
    pieces = _pieces(connection, windows)
    by_id = {window[0]: window for window in windows}
    return KeptContexts(
        contexts=tuple(_context(row, by_id[row[0]], pieces) for row in kept if row[0] in by_id),
        counts=dict(Counter((row[3], row[1]) for row in rows)),
    )


def _context(
    row: tuple[Any, ...], window: tuple[Any, ...], pieces: dict[tuple[str, int], str]
) -> ShownContext:
    window_id, kind, rank, split, peak, weight, positions, values = row
    _, doc_id, start, tokenizer, prefix_ids, token_ids = window
    activations = [0.0] * len(token_ids)
    for position, value in zip(positions, values, strict=True):
        activations[position] = value

    def texts(ids: list[int] | None) -> tuple[str, ...]:
        # A token without a piece is shown by its number rather than left out.
        return tuple(pieces.get((tokenizer, token_id), f"<{token_id}>") for token_id in ids or ())

    return ShownContext(
        kind=kind,
        rank=rank,
        split=split,
        window_id=window_id,
        doc_id=doc_id,
        start=start,
        peak=peak,
        weight=weight,
        prefix=texts(prefix_ids),
        tokens=texts(token_ids),
        activations=tuple(activations),
    )


def _pieces(
    connection: duckdb.DuckDBPyConnection, windows: list[tuple[Any, ...]]
) -> dict[tuple[str, int], str]:
    wanted = {
        (tokenizer, token_id)
        for *_, tokenizer, prefix_ids, token_ids in windows
        for token_id in [*(prefix_ids or ()), *token_ids]
    }
    if not wanted:
        return {}
    found = connection.execute(
        "SELECT tokenizer, token_id, text FROM pieces "
        "WHERE list_contains($1, tokenizer) AND token_id IN (SELECT unnest($2::INTEGER[]))",
        [sorted({tokenizer for tokenizer, _ in wanted}), sorted({number for _, number in wanted})],
    ).fetchall()
    return {(tokenizer, token_id): text for tokenizer, token_id, text in found if text is not None}
