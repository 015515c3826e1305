"""What was scored in a run, to be computed again from what is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .null_ladder import SHUFFLED
from .splits import Split

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ScoredBefore:
    """A label that a simulator has scored on a split.

    Attributes:
        scorer: `simulation`, or `shuffled_label` under another feature's label.
        design: what the headline was taken over, as it is stored.
    """

    sae_id: str
    feature: int
    label_id: str
    simulator: str
    split: Split
    scorer: str
    design: dict[str, Any]


def scored_before(connection: duckdb.DuckDBPyConnection) -> list[ScoredBefore]:
    """All labels with headlines that no newer text has overtaken, by simulator, split, feature.

    The scores of a label that was taken back stay what they were.
    """
    rows = connection.execute(
        """
        SELECT l.sae_id, l.feature, s.label_id, s.simulator, s.split, s.scorer, s.design
        FROM scores s JOIN labels l USING (label_id)
        WHERE s.metric = 'correlation' AND s.scorer IN ('simulation', $shuffled)
            AND s.stale_since IS NULL
            AND l.status <> 'withdrawn'
        ORDER BY s.simulator, s.split, l.sae_id, l.feature, s.label_id, s.scorer
        """,
        {"shuffled": SHUFFLED},
    ).fetchall()
    return [
        ScoredBefore(
            sae_id, feature, label_id, simulator, split, scorer, json.loads(design or "{}")
        )
        for sae_id, feature, label_id, simulator, split, scorer, design in rows
    ]


def opinions_before(
    connection: duckdb.DuckDBPyConnection, simulator: str, scorer: str
) -> dict[str, list[tuple[int, str]]]:
    """Per SAE, feature and id of the labels that a judge has given a second opinion on."""
    rows = connection.execute(
        """
        SELECT DISTINCT l.sae_id, l.feature, l.label_id FROM scores s JOIN labels l USING (label_id)
        WHERE s.simulator = $simulator AND s.scorer = $scorer AND s.split = 'score'
            AND s.stale_since IS NULL
            AND l.status <> 'withdrawn'
        ORDER BY ALL
        """,
        {"simulator": simulator, "scorer": scorer},
    ).fetchall()
    found: dict[str, list[tuple[int, str]]] = {}
    for sae_id, feature, label_id in rows:
        found.setdefault(sae_id, []).append((feature, label_id))
    return found
