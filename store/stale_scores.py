"""Scores that newer text has overtaken: windows that they were taken on are no longer kept.

They are marked and stay, since they are what is known until the label is scored again. What the
token lookup has scored is always overtaken: it is the text's own statistics, and costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .steered_scores import INTERVENTION

if TYPE_CHECKING:
    import duckdb


def note_windows(connection: duckdb.DuckDBPyConnection) -> None:
    """Notes of which split windows are, before the tables are built anew."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE windows_before AS SELECT window_id, split FROM windows"
    )


def mark_stale(connection: duckdb.DuckDBPyConnection) -> None:
    """Marks the scores that the tables just built have overtaken; after `note_windows`.

    Second opinions, of whose windows only a hash is kept, go with the label's simulated score. What
    a feature does when it is turned up is the model's doing: newer text overtakes none of that.
    """
    connection.execute(
        """
        WITH simulated AS (
            SELECT DISTINCT s.label_id, s.simulator, l.sae_id, l.feature, w.split, s.window_id
            FROM simulations s JOIN labels l USING (label_id)
                JOIN windows_before w USING (window_id)
            WHERE s.scorer <> 'screen' AND s.simulator <> 'token_lookup'
        ),
        overtaken AS (
            SELECT DISTINCT label_id, simulator, split FROM simulated
            ANTI JOIN contexts USING (sae_id, feature, split, window_id)
            ANTI JOIN (SELECT window_id, split FROM windows WHERE is_background)
                USING (window_id, split)
        )
        UPDATE scores SET stale_since = now()
        WHERE stale_since IS NULL AND scorer <> $intervention AND (
            simulator = 'token_lookup'
            OR (label_id, simulator, split) IN (SELECT (label_id, simulator, split) FROM overtaken)
            OR scorer NOT IN ('simulation', 'shuffled_label')
                AND (label_id, split) IN (SELECT (label_id, split) FROM overtaken)
        )
        """,
        {"intervention": INTERVENTION},
    )
    connection.execute("DROP TABLE windows_before")
