"""Where the scores of a run stand: beside the token lookup's and those of labels of other features.

A constant prediction, the lowest rung, has no correlation at all: it is undefined for every
feature, which needs no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

SHUFFLED = "shuffled_label"
"""The scorer of a feature's windows simulated under another feature's label."""

HEADLINES = """
    SELECT l.sae_id, l.feature, l.explainer, s.simulator, s.scorer, s.value, s.null_value, s.lift
    FROM scores s JOIN (
        SELECT *, generation < max(generation) OVER (
            PARTITION BY sae_id, feature, explainer, prompt_version, model) AS is_old
        FROM labels
    ) l USING (label_id)
    WHERE s.metric = 'correlation' AND s.split = 'score'
        -- Nobody will score them again: newer labels have taken their place.
        AND NOT (is_old AND s.stale_since IS NOT NULL)
"""
"""Every headline on `score` with the feature that it is of, shuffled labels among them."""


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
        n_above_shuffled: labels that score above 95% of these others; None where there are none.
    """

    explainer: str
    simulator: str
    n: int
    median: float
    null_median: float | None
    n_shuffled: int
    n_shuffled_undefined: int
    shuffled_median: float | None
    n_above_shuffled: int | None


def read_null_ladder(connection: duckdb.DuckDBPyConnection) -> tuple[LadderRow, ...]:
    """A row for each explainer and simulator with scores."""
    rows = connection.execute(
        f"""
        WITH headlines AS ({HEADLINES}),
        high AS (
            SELECT explainer, simulator, quantile_cont(value, 0.95) AS bound FROM headlines
            WHERE scorer = $shuffled GROUP BY ALL
        )
        SELECT explainer, simulator,
            count(value) FILTER (scorer = 'simulation') AS n,
            median(value) FILTER (scorer = 'simulation'),
            median(null_value) FILTER (scorer = 'simulation'),
            count(*) FILTER (scorer = $shuffled),
            count(*) FILTER (scorer = $shuffled AND value IS NULL),
            median(value) FILTER (scorer = $shuffled),
            CASE WHEN any_value(bound) IS NOT NULL
                THEN count(*) FILTER (scorer = 'simulation' AND value > bound) END
        FROM headlines LEFT JOIN high USING (explainer, simulator)
        GROUP BY ALL HAVING n > 0 ORDER BY explainer, simulator
        """,
        {"shuffled": SHUFFLED},
    ).fetchall()
    return tuple(LadderRow(*row) for row in rows)


def imported_sets(connection: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """The explainers of imported labels: whose they are, and how they were written."""
    rows = connection.execute(
        "SELECT DISTINCT explainer FROM labels WHERE source = 'imported' ORDER BY explainer"
    ).fetchall()
    return tuple(explainer for (explainer,) in rows)
