"""What a feature was labelled, by whom and why, and what was in force after each run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from .records import FeatureId

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """A label as it came to be, those that failed or were taken back included.

    Attributes:
        request_hash: of the call that it comes from; None where no model was asked.
        draw: which of several from the same prompt it is, from 0.
        created_at: or when its author took it back.
        run_id: of the run that made it; None for what people wrote.
        why: it was made; None where that was not recorded.
        generation: how often the feature had been labelled again for other contexts.
        saw_score: whether the person who wrote it had looked at contexts of `score`.
        n_dropped_contexts: that did not fit into the prompt.
    """

    label_id: str
    text: str | None
    explainer: str
    prompt_version: str
    model: str | None
    request_hash: str | None
    draw: int | None
    source: str
    author: str | None
    status: str
    reason: str | None
    created_at: datetime | None
    run_id: str | None
    why: str | None
    generation: int | None
    saw_score: bool | None
    n_dropped_contexts: int | None


@dataclass(frozen=True, slots=True)
class LeftInForce:
    """A run that left the feature otherwise than the run before.

    Attributes:
        command: None where the run's record is gone.
        label_id: None: none was in force any more.
        text: of that label.
        reason: why there was no score though it was computed.
    """

    run_id: str
    command: str | None
    recorded_at: datetime | None
    label_id: str | None
    text: str | None
    simulator: str | None
    score: float | None
    reason: str | None


def read_label_records(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> tuple[LabelRecord, ...]:
    """All labels ever proposed for a feature, the newest first."""
    columns = ", ".join(LabelRecord.__dataclass_fields__)
    rows = connection.execute(
        f"SELECT {columns} FROM labels WHERE sae_id = $1 AND feature = $2 "
        "ORDER BY created_at DESC NULLS LAST, explainer, label_id",
        [feature_id.sae_id, feature_id.feature],
    ).fetchall()
    return tuple(LabelRecord(*row) for row in rows)


def read_left_in_force(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> tuple[LeftInForce, ...]:
    """What runs left in force, the latest first; one that changed nothing left no row."""
    rows = connection.execute(
        """
        WITH kept AS (
            FROM label_history WHERE sae_id = $sae AND feature = $feature
        ), named AS (
            SELECT label_id, text FROM labels WHERE sae_id = $sae AND feature = $feature
        )
        SELECT k.run_id, r.command, k.recorded_at, k.label_id, n.text, k.simulator, k.score,
            k.reason
        FROM kept k LEFT JOIN runs r USING (run_id) LEFT JOIN named n USING (label_id)
        ORDER BY k.recorded_at DESC, k.run_id
        """,
        {"sae": feature_id.sae_id, "feature": feature_id.feature},
    ).fetchall()
    return tuple(LeftInForce(*row) for row in rows)


def read_own_votes(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId, author: str
) -> dict[str, int]:
    """How an author voted on labels of a feature, by label: 1 for, -1 against."""
    rows = connection.execute(
        """
        SELECT label_id, vote FROM votes
        WHERE author = $author AND vote <> 0 AND label_id IN (
            SELECT label_id FROM labels WHERE sae_id = $sae AND feature = $feature
        )
        """,
        {"author": author, "sae": feature_id.sae_id, "feature": feature_id.feature},
    ).fetchall()
    return dict(rows)
