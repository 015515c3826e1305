"""The labels proposed for a feature: the one in force, others, and those that came to nothing.

Which label is in force is the `current_labels` view's to say; nothing here chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from .records import FeatureId

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ShownLabel:
    """A label, or the record that none could be made.

    Attributes:
        model: which wrote it; None where none was asked.
        saw_score: whether the person who wrote it had looked at contexts of `score`.
        n_up, n_down: votes for and against it.
    """

    label_id: str
    text: str | None
    explanation: str | None
    explainer: str
    model: str | None
    source: str
    author: str | None
    status: str
    reason: str | None
    created_at: datetime | None
    saw_score: bool | None = None
    n_up: int = 0
    n_down: int = 0

    @property
    def by(self) -> str:
        """Who proposed it; of an imported label without a model also its author's name."""
        if self.source == "human":
            return f"{self.source}, {self.author or '–'}"
        names = [self.explainer, self.model]
        if self.source == "imported":
            is_said = self.model is not None or self.author == self.explainer
            names = [self.source, self.explainer, self.model, None if is_said else self.author]
        return ", ".join(name for name in names if name is not None)


@dataclass(frozen=True, slots=True)
class FeatureLabels:
    """All labels proposed for a feature, but for those that their authors took back."""

    in_force: ShownLabel | None
    others: tuple[ShownLabel, ...]
    failed: tuple[ShownLabel, ...]


def read_feature_labels(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> FeatureLabels:
    """The labels of a feature, by explainer."""
    columns = ", ".join(
        f"l.{name}" for name in ShownLabel.__dataclass_fields__ if name not in ("n_up", "n_down")
    )
    rows = connection.execute(
        f"""
        SELECT {columns}, coalesce(v.n_up, 0), coalesce(v.n_down, 0), c.label_id IS NOT NULL
        FROM labels l LEFT JOIN (
            SELECT label_id FROM current_features WHERE sae_id = $sae AND feature = $feature
        ) c USING (label_id)
        LEFT JOIN (
            SELECT label_id, count_if(vote > 0) AS n_up, count_if(vote < 0) AS n_down
            FROM votes GROUP BY label_id
        ) v USING (label_id)
        WHERE l.sae_id = $sae AND l.feature = $feature
        ORDER BY l.explainer, l.model NULLS FIRST, l.draw, l.label_id
        """,
        {"sae": feature_id.sae_id, "feature": feature_id.feature},
    ).fetchall()
    labels = [(ShownLabel(*values), is_in_force) for *values, is_in_force in rows]
    return FeatureLabels(
        in_force=next((label for label, is_in_force in labels if is_in_force), None),
        others=tuple(
            label for label, is_in_force in labels if not is_in_force and label.status == "done"
        ),
        failed=tuple(label for label, _ in labels if label.status == "failed"),
    )
