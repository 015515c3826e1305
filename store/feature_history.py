"""What a feature was labelled, by whom and why, and what was in force after each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from .feature_labels import FeatureLabels, ShownLabel
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
    explanation: str | None
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
        reason: why there was no score though it was computed.
    """

    run_id: str
    command: str | None
    recorded_at: datetime | None
    label_id: str | None
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
        SELECT k.run_id, r.command, k.recorded_at, k.label_id, k.simulator, k.score, k.reason
        FROM label_history k LEFT JOIN runs r USING (run_id)
        WHERE k.sae_id = $1 AND k.feature = $2
        ORDER BY k.recorded_at DESC, k.run_id
        """,
        [feature_id.sae_id, feature_id.feature],
    ).fetchall()
    return tuple(LeftInForce(*row) for row in rows)


@dataclass(frozen=True, slots=True)
class LabelVotes:
    """How people voted on a label.

    Attributes:
        n_up, n_down: for and against it.
        own: of one author: 1, -1, or 0 for none.
    """

    n_up: int = 0
    n_down: int = 0
    own: int = 0


def read_votes(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str], author: str | None
) -> dict[str, LabelVotes]:
    """The votes on these labels, and among them an author's; none where nobody voted."""
    rows = connection.execute(
        """
        SELECT label_id, count_if(vote > 0), count_if(vote < 0),
            coalesce(sum(vote) FILTER (author = $author), 0)::INTEGER
        FROM votes WHERE label_id IN (SELECT unnest($ids::VARCHAR[])) GROUP BY label_id
        """,
        {"ids": list(label_ids), "author": author},
    ).fetchall()
    return {label_id: LabelVotes(*counts) for label_id, *counts in rows}


def labels_of(
    records: Sequence[LabelRecord], in_force: str | None, votes: Mapping[str, LabelVotes]
) -> FeatureLabels:
    """The same labels as `read_feature_labels` reads, where all else of them is known already.

    Args:
        records: of all labels of the feature.
        in_force: the label in force.
        votes: by label.
    """

    def shown(record: LabelRecord) -> ShownLabel:
        given = votes.get(record.label_id, LabelVotes())
        names = [name for name in ShownLabel.__dataclass_fields__ if name not in ("n_up", "n_down")]
        return ShownLabel(
            **{name: getattr(record, name) for name in names},
            n_up=given.n_up,
            n_down=given.n_down,
        )

    ordered = sorted(
        records,
        key=lambda each: (each.explainer, each.model or "", each.draw or 0, each.label_id),
    )
    return FeatureLabels(
        in_force=next((shown(each) for each in ordered if each.label_id == in_force), None),
        others=tuple(
            shown(each) for each in ordered if each.status == "done" and each.label_id != in_force
        ),
        failed=tuple(shown(each) for each in ordered if each.status == "failed"),
    )
