"""Where the scores of a run stand: beside the token lookup's and those of labels of other features.

A constant prediction, the lowest rung, has no correlation at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

SHUFFLED = "shuffled_label"
"""The scorer of a feature's windows simulated under another feature's label."""


@dataclass(frozen=True, slots=True)
class LadderRow:
    """The headlines of an explainer's labels on `score`, by one simulator.

    Attributes:
        n: how many are defined.
        median: of them.
        null_median: of the token lookup on the same windows; None where it is the simulator.
        n_shuffled: how many features were simulated under another feature's label.
        n_shuffled_undefined: how many of these have no correlation, most often because that label
            predicts nothing anywhere.
        shuffled_median: of the others.
    """

    explainer: str
    simulator: str
    n: int
    median: float
    null_median: float | None
    n_shuffled: int
    n_shuffled_undefined: int
    shuffled_median: float | None


def read_null_ladder(connection: duckdb.DuckDBPyConnection) -> tuple[LadderRow, ...]:
    """A row for each explainer and simulator with scores."""
    rows = connection.execute(
        """
        SELECT l.explainer, s.simulator,
            count(s.value) FILTER (s.scorer = 'simulation') AS n,
            median(s.value) FILTER (s.scorer = 'simulation'),
            median(s.null_value) FILTER (s.scorer = 'simulation'),
            count(*) FILTER (s.scorer = $shuffled),
            count(*) FILTER (s.scorer = $shuffled AND s.value IS NULL),
            median(s.value) FILTER (s.scorer = $shuffled)
        FROM scores s JOIN labels l USING (label_id)
        WHERE s.metric = 'correlation' AND s.split = 'score'
        GROUP BY ALL HAVING n > 0 ORDER BY l.explainer, s.simulator
        """,
        {"shuffled": SHUFFLED},
    ).fetchall()
    return tuple(LadderRow(*row) for row in rows)
