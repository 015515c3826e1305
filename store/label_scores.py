"""All scores of some labels, read at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from .feature_page import ShownScore

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class LabelScore(ShownScore):
    """One number for a label, or the reason why there is none.

    Attributes:
        stale_since: since when windows that it was taken on are no longer kept; None: all are.
    """

    label_id: str
    stale_since: datetime | None

    @property
    def is_headline(self) -> bool:
        """Whether it is the correlation at natural density, of the label's own simulation."""
        return (self.scorer, self.metric) == ("simulation", "correlation")


def read_label_scores(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str]
) -> dict[str, tuple[LabelScore, ...]]:
    """Every score of these labels, by label id: those on `score` first, headlines first."""
    found: dict[str, tuple[LabelScore, ...]] = {label_id: () for label_id in label_ids}
    if not found:
        return found
    columns = ", ".join(LabelScore.__dataclass_fields__)
    # Joined: of six million rows, finding two ids of a list in each takes four times as long.
    rows = connection.execute(
        f"""
        SELECT {columns} FROM scores WHERE label_id IN (SELECT unnest($ids))
        ORDER BY split = 'score' DESC, scorer = 'simulation' DESC, metric = 'correlation' DESC,
            scorer, metric, simulator = 'token_lookup', simulator
        """,
        {"ids": list(label_ids)},
    ).fetchall()
    for row in rows:
        score = LabelScore(*row)
        found[score.label_id] += (score,)
    return found
