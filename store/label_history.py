"""Which label was in force for a feature after each run, and how it scored: what runs add to.

The other tables hold only the present. Here a run leaves a row for each feature whose label in
force, or whose headline, is not what the last run left; so the latest row of a feature is how
the last run left it. A run that is killed leaves none, and the next one's report covers it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb

from .database import now

# What a feature's last row says; a row without a label says that it had lost its own.
_LATEST = """
    latest AS (
        FROM label_history
        QUALIFY row_number() OVER (PARTITION BY sae_id, feature ORDER BY recorded_at DESC) = 1
    )
"""
# Stages may be runs of their own: a label that nobody has scored yet does not make the score
# forgotten that the feature had.
_LAST_SCORED = """
    scored AS (
        FROM label_history
        WHERE label_id IS NULL OR simulator IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY sae_id, feature ORDER BY recorded_at DESC) = 1
    )
"""


@dataclass(frozen=True, slots=True)
class LabelsInForce:
    """How the labels in force differ from those that the last run left.

    Attributes:
        n: features that have one now.
        n_first: of these, how many had none then.
        n_replaced: how many had another one.
        n_lost: features that had one and have none now.
    """

    n: int
    n_first: int
    n_replaced: int
    n_lost: int


def compare_in_force(connection: duckdb.DuckDBPyConnection) -> LabelsInForce:
    """The labels in force beside those that the last run left."""
    rows = connection.execute(
        f"""
        WITH {_LATEST}
        SELECT
            count(n.label_id),
            count(*) FILTER (n.label_id IS NOT NULL AND l.label_id IS NULL),
            count(*) FILTER (n.label_id <> l.label_id),
            count(*) FILTER (n.label_id IS NULL AND l.label_id IS NOT NULL)
        FROM latest l FULL JOIN current_labels n USING (sae_id, feature)
        """
    ).fetchall()
    return LabelsInForce(*rows[0])


def read_scores_twice(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The headline of every feature's label in force, as it was last scored before, and now.

    Returns:
        NumPy columns, a place a feature, in the order of features: `simulator_before`,
        `score_before` (NaN where there was none), `reason_before` (why), and the same with `_now`;
        of either state the simulator is None where it scored nothing. `has_changed`: label,
        simulator or score is another.
    """
    found = connection.execute(
        f"""
        WITH {_LAST_SCORED}
        SELECT
            l.simulator AS simulator_before,
            l.score AS score_before,
            l.reason AS reason_before,
            n.simulator AS simulator_now,
            n.score AS score_now,
            n.score_reason AS reason_now,
            (l.label_id, l.simulator, l.score) IS DISTINCT FROM (n.label_id, n.simulator, n.score)
                AS has_changed
        FROM scored l FULL JOIN current_labels n USING (sae_id, feature)
        ORDER BY sae_id, feature
        """
    )
    return {name: _plain(column) for name, column in found.fetchnumpy().items()}


def _plain(column: Any) -> Any:
    """A column without a mask: NaN in the place of a number, None in that of anything else."""
    if not hasattr(column, "mask"):  # an array that is masked nowhere
        return column
    values = column.data.copy()
    values[column.mask] = float("nan") if values.dtype.kind == "f" else None
    return values


def append_history(connection: duckdb.DuckDBPyConnection, run_id: str) -> int:
    """Adds a row for each feature that is not as the last run left it; how many."""
    rows = connection.execute(
        f"""
        INSERT INTO label_history
        WITH {_LATEST}
        SELECT $run, sae_id, feature, n.label_id, n.simulator, n.score, n.score_reason, $now
        FROM latest l FULL JOIN current_labels n USING (sae_id, feature)
        WHERE (l.label_id, l.simulator, l.score, l.reason)
            IS DISTINCT FROM (n.label_id, n.simulator, n.score, n.score_reason)
        """,
        {"run": run_id, "now": now()},
    ).fetchall()
    return int(rows[0][0])
