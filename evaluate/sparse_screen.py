"""A screen for little money: windows are rated many a call, and suspects are then rated one by one.

Two phases with known chances: what is rated in the second is drawn from what the first has sorted,
and weighed accordingly (`screening`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..store.records import FeatureContexts, Label, Simulation, Windows
from .looked_at_label import Screening
from .simulators import Simulator, simulate_blind
from .sparse_simulator import suspects

SCORER = "screen"


@dataclass(frozen=True, slots=True)
class SparseScreen:
    """Suspects are the windows in which a simulator predicts anything, and those where it fails.

    Attributes:
        simulator: as a rule `sparse_simulator.SparseChatSimulator`.
        seed: of the order in which windows share calls.
    """

    simulator: Simulator
    seed: int

    @property
    def name(self) -> str:
        """That of the simulator."""
        return self.simulator.name

    def sort(self, label: Label, explain: FeatureContexts, windows: Windows) -> Screening:
        """Says which windows are suspects."""
        simulated = simulate_blind(self.simulator, label, windows, self.seed)
        n_tokens = windows.is_token.sum(axis=1)
        stored = [
            Simulation(
                label_id=label.label_id,
                simulator=self.name,
                window_id=name,
                predicted=simulated.predicted[row, : n_tokens[row]]
                if row not in simulated.failures
                else None,
                status="failed" if row in simulated.failures else "done",
                reason=simulated.failures.get(row),
                scorer=SCORER,
                captured_mass=simulated.captured_mass.get(row),
            )
            for row, name in enumerate(windows.window_id.tolist())
        ]
        return Screening(suspects(simulated), stored)
