"""The tokens at which each feature is strongest, written beside its other statistics.

They follow from the contexts of the `explain` split, and go when the tables are built anew.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from .collected import mark_worked_out, saes_behind
from .facts import transaction

_TOP_TOKENS = "top_tokens"


def missing_top_tokens(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The SAEs, with their widths, whose top tokens are not those of the text as it is now."""
    behind = saes_behind(connection, _TOP_TOKENS)
    rows = connection.execute("SELECT sae_id, width FROM saes ORDER BY sae_id").fetchall()
    return {sae_id: width for sae_id, width in rows if sae_id in behind}


def write_top_tokens(connection: duckdb.DuckDBPyConnection, sae_id: str, rows: pa.Table) -> None:
    """Writes the top tokens of all features of an SAE, as text; all or none.

    Args:
        connection: the working copy.
        sae_id: whose.
        rows: one a feature: feature, and token_ids, means and counts as lists, best first.
    """
    connection.register("top_token_rows", rows)
    with transaction(connection):
        connection.execute(
            """
            UPDATE features SET
                top_tokens = coalesce(f.texts, []), top_token_means = f.means,
                top_token_counts = f.counts
            FROM (
                WITH tokens AS (
                    SELECT feature, unnest(token_ids) AS token_id,
                           generate_subscripts(token_ids, 1) AS rank
                    FROM top_token_rows
                ),
                texts AS (
                    SELECT feature, list(coalesce(text, '<' || token_id || '>') ORDER BY rank)
                        AS texts
                    FROM tokens LEFT JOIN pieces USING (token_id) GROUP BY feature
                )
                SELECT r.feature, r.means, r.counts, t.texts
                FROM top_token_rows r LEFT JOIN texts t USING (feature)
            ) f
            WHERE features.sae_id = $sae AND features.feature = f.feature
            """,
            {"sae": sae_id},
        )
        mark_worked_out(connection, _TOP_TOKENS, sae_id)
    connection.unregister("top_token_rows")
