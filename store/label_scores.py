"""All scores of some labels, read at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from .feature_page import ShownScore

if TYPE_CHECKING:
    import duckdb


def read_label_scores(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str]
) -> dict[str, tuple[ShownScore, ...]]:
    """Every score of these labels, by label id: those on `score` first, headlines first."""
    columns = ", ".join(field.name for field in fields(ShownScore))
    rows = connection.execute(
        f"""
        SELECT label_id, {columns} FROM scores WHERE label_id IN (SELECT unnest($ids))
        ORDER BY split = 'score' DESC, metric = 'correlation' DESC, scorer, metric, simulator
        """,
        {"ids": list(label_ids)},
    ).fetchall()
    found: dict[str, tuple[ShownScore, ...]] = {label_id: () for label_id in label_ids}
    for label_id, *score in rows:
        found[label_id] += (ShownScore(*score),)
    return found
