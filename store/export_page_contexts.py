"""The first contexts of features, cut to some tokens around the peak, many features at a time.

They are of split `explain`, as a feature's page in the dashboard opens: labels are judged by those
of `score`, and who has not seen them can still write a label that has not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

TOKENS_BEFORE, TOKENS_AFTER = 20, 7
"""Tokens of a context that are shown before its peak and after it."""

PAGE_CONTEXTS = 100_000
"""About so many contexts are on a page at most, but each feature has one of either kind."""

MOST_EACH = 5
"""Contexts of either kind that a feature has at most."""


@dataclass(frozen=True, slots=True)
class PageContext:
    """A context cut to the tokens around its peak.

    Attributes:
        kind: `top` or `sample`.
        before: tokens that stand before the window, which are never recorded.
        tokens, activations: equally many; 0 where the feature is off.
        is_cut_before: the document has more before what is shown.
        is_cut_after: the window has more after it.
    """

    kind: str
    peak: float
    before: tuple[str, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    is_cut_before: bool
    is_cut_after: bool


@dataclass(slots=True)
class PageContexts:
    """Contexts of a feature that are shown, and how many of each kind are kept."""

    shown: list[PageContext] = field(default_factory=list)
    n_kept: dict[str, int] = field(default_factory=dict)


class PieceTexts:
    """What tokens spell, read once for each tokenizer."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._texts: dict[str, dict[int, str]] = {}

    def spell(self, tokenizer: str, token_ids: list[int]) -> tuple[str, ...]:
        """The tokens as text; one without a piece is shown by its number."""
        if tokenizer not in self._texts:
            rows = self._connection.execute(
                "SELECT token_id, text FROM pieces WHERE tokenizer = ? AND text IS NOT NULL",
                [tokenizer],
            ).fetchall()
            self._texts[tokenizer] = dict(rows)
        texts = self._texts[tokenizer]
        return tuple(texts.get(token_id, f"<{token_id}>") for token_id in token_ids)


_CONTEXTS = """
    WITH kept AS (
        SELECT feature, kind, window_id, max_activation, positions, activations,
            count(*) OVER (PARTITION BY feature, kind) AS n_kept,
            row_number() OVER (PARTITION BY feature, kind ORDER BY rank) AS place
        FROM contexts SEMI JOIN chosen_features USING (sae_id, feature)
        WHERE sae_id = $sae AND feature BETWEEN $first AND $last AND split = 'explain'
    ),
    shown AS (
        SELECT *, positions[list_position(activations, list_max(activations))]::INTEGER AS peak,
            greatest(0, peak - $before) AS begin
        FROM kept WHERE place <= $n
    ),
    cut AS (
        SELECT s.*, w.tokenizer, w.start, len(w.token_ids) AS n_tokens,
            coalesce(w.prefix_token_ids, []) AS prefix,
            w.token_ids[begin + 1 : peak + $after + 1] AS token_ids,
            prefix[greatest(1, len(prefix) + 1 - ($before - (peak - begin))) :] AS before_ids
        FROM shown s JOIN windows w USING (window_id)
    )
    SELECT feature, kind, n_kept, max_activation, positions, activations, begin, tokenizer,
        token_ids, before_ids, begin > 0 OR start > len(before_ids),
        begin + len(token_ids) < n_tokens
    FROM cut ORDER BY feature, kind DESC, place
"""


def contexts_each(connection: duckdb.DuckDBPyConnection, sae_id: str) -> int:
    """How many contexts of either kind each chosen feature of this SAE is shown with."""
    rows: list[tuple[int]] = connection.execute(
        "SELECT count(*) FROM chosen_features WHERE sae_id = ?", [sae_id]
    ).fetchall()
    ((n,),) = rows
    return max(1, min(MOST_EACH, PAGE_CONTEXTS // (2 * max(1, n))))


def read_page_contexts(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: range, n: int, pieces: PieceTexts
) -> dict[int, PageContexts]:
    """The contexts of chosen features: the highest peaks, then those at random, each by rank.

    Args:
        connection: to the database, with the table `chosen_features`.
        sae_id: of the SAE.
        features: numbers of features.
        n: contexts of either kind of a feature.
        pieces: of the same connection.
    """
    rows = connection.execute(
        _CONTEXTS,
        {
            "sae": sae_id, "first": features.start, "last": features.stop - 1, "n": n,
            "before": TOKENS_BEFORE, "after": TOKENS_AFTER,
        },
    ).fetchall()  # fmt: skip
    found: dict[int, PageContexts] = defaultdict(PageContexts)
    for feature, kind, n_kept, peak, positions, values, begin, tokenizer, ids, before, *cut in rows:
        activations = [0.0] * len(ids)
        for position, value in zip(positions, values, strict=True):
            if begin <= position < begin + len(ids):
                activations[position - begin] = value
        of_feature = found[feature]
        of_feature.n_kept[kind] = n_kept
        of_feature.shown.append(
            PageContext(
                kind,
                peak,
                pieces.spell(tokenizer, before),
                pieces.spell(tokenizer, ids),
                tuple(activations),
                *cut,
            )
        )
    return found
