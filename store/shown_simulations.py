"""Predictions for windows that are shown, to lay them over the true activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ShownSimulation:
    """What a simulator made of some windows under a label.

    Attributes:
        predicted: by window, a number a token, in the simulator's own units.
        failures: by window, why there is none.
    """

    label_id: str
    simulator: str
    predicted: dict[int, tuple[float, ...]]
    failures: dict[int, str]


def read_shown_simulations(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str], window_ids: Sequence[int]
) -> tuple[ShownSimulation, ...]:
    """What is stored for these labels on these windows, by label and simulator.

    Predictions for null scores, under another feature's label, are left out.
    """
    if not label_ids or not window_ids:
        return ()
    rows = connection.execute(
        """
        SELECT label_id, simulator, window_id, predicted, reason FROM simulations
        WHERE scorer = 'simulation' AND label_id IN (SELECT unnest($labels::VARCHAR[]))
            AND window_id IN (SELECT unnest($windows::UBIGINT[]))
        ORDER BY label_id, simulator
        """,
        {"labels": list(label_ids), "windows": list(window_ids)},
    ).fetchall()
    found: dict[tuple[str, str], ShownSimulation] = {}
    for label_id, simulator, window_id, predicted, reason in rows:
        one = found.setdefault((label_id, simulator), ShownSimulation(label_id, simulator, {}, {}))
        if predicted is None:
            one.failures[window_id] = reason or "no reason given"
        else:
            one.predicted[window_id] = tuple(predicted)
    return tuple(found.values())
