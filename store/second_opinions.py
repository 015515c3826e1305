"""What judges say of labels beside the headline: detection, fuzzing, discrimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .null_ladder import SHUFFLED

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class OpinionRow:
    """A metric of a second opinion over an explainer's labels on `score`.

    Attributes:
        n: how many are defined.
        n_undefined: how many are not.
        median: of the defined.
        null_median: of the token lookup on the same windows; None where it has no say.
    """

    explainer: str
    simulator: str
    scorer: str
    metric: str
    n: int
    n_undefined: int
    median: float | None
    null_median: float | None


def read_second_opinions(connection: duckdb.DuckDBPyConnection) -> tuple[OpinionRow, ...]:
    """A row for each explainer, judge, scorer and metric."""
    rows = connection.execute(
        """
        SELECT l.explainer, s.simulator, s.scorer, s.metric, count(s.value),
            count(*) - count(s.value), median(s.value), median(s.null_value)
        FROM scores s JOIN labels l USING (label_id)
        WHERE s.split = 'score' AND s.scorer NOT IN ('simulation', $shuffled)
        GROUP BY ALL ORDER BY l.explainer, s.simulator, s.scorer, s.metric
        """,
        {"shuffled": SHUFFLED},
    ).fetchall()
    return tuple(OpinionRow(*row) for row in rows)
