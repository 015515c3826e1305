"""Predicted activations as tables, and back: what every metric can be computed again from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .records import Simulation

if TYPE_CHECKING:
    import duckdb


def read_simulations(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str], simulator: str, scorer: str
) -> dict[str, list[Simulation]]:
    """What a simulator predicted under these labels for a scorer, failures too, by label id."""
    rows = connection.execute(
        """
        SELECT label_id, window_id, predicted, status, reason, captured_mass FROM simulations
        WHERE simulator = $simulator AND scorer = $scorer AND label_id IN (SELECT unnest($ids))
        ORDER BY label_id, window_id
        """,
        {"simulator": simulator, "scorer": scorer, "ids": list(label_ids)},
    ).fetchall()
    found: dict[str, list[Simulation]] = {}
    for label_id, window_id, predicted, status, reason, captured_mass in rows:
        found.setdefault(label_id, []).append(
            Simulation(
                label_id=label_id,
                simulator=simulator,
                window_id=window_id,
                predicted=None if predicted is None else np.array(predicted, np.float32),
                status=status,
                reason=reason,
                scorer=scorer,
                captured_mass=captured_mass,
            )
        )
    return found


def simulations_table(simulations: Sequence[Simulation]) -> pa.Table:
    """The simulations as rows of the table of that name."""
    predicted: list[Any] = [s.predicted for s in simulations]
    lengths = np.array([0 if p is None else len(p) for p in predicted], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.concatenate([np.empty(0, np.float32), *(p for p in predicted if p is not None)])
    is_missing = np.array([p is None for p in predicted], dtype=np.bool_)
    return pa.table(
        {
            "label_id": pa.array([s.label_id for s in simulations], pa.string()),
            "simulator": pa.array([s.simulator for s in simulations], pa.string()),
            "window_id": pa.array([s.window_id for s in simulations], pa.uint64()),
            "predicted": pa.ListArray.from_arrays(offsets, values, mask=pa.array(is_missing)),
            "status": pa.array([s.status for s in simulations], pa.string()),
            "reason": pa.array([s.reason for s in simulations], pa.string()),
            "scorer": pa.array([s.scorer for s in simulations], pa.string()),
            "captured_mass": pa.array([s.captured_mass for s in simulations], pa.float64()),
        }
    )
