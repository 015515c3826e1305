"""Windows that were simulated before are not simulated again: in an earlier look, or in a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..store.records import Label, Simulation, Windows
from .simulators import Simulated, Simulator

NOT_STORED = "no prediction is stored for the window"


@dataclass(frozen=True, slots=True)
class StoredPredictions:
    """A simulator (`Simulator`) of which nothing is left but what is stored of it."""

    name: str
    full_scale: float | None
    depends_on_order: bool = False

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """Nothing: what is stored is remembered, and there is no more."""
        nothing = np.zeros(windows.token_ids.shape, dtype=np.float32)
        return Simulated(nothing, dict.fromkeys(range(len(windows)), NOT_STORED))


@dataclass(frozen=True, slots=True)
class Remembering:
    """A simulator (`Simulator`) of one label that simulates each window once.

    Attributes:
        simulator: what predicts.
        memory: by window id, what it predicted, failures too.
    """

    simulator: Simulator
    memory: dict[int, Simulation] = field(default_factory=dict)

    @classmethod
    def of(cls, simulator: Simulator, known: Iterable[Simulation]) -> Remembering:
        """One that begins with what is known."""
        return cls(simulator, {each.window_id: each for each in known})

    @property
    def name(self) -> str:
        """That of the simulator."""
        return self.simulator.name

    @property
    def depends_on_order(self) -> bool:
        """As of the simulator."""
        return self.simulator.depends_on_order

    @property
    def full_scale(self) -> float | None:
        """As of the simulator."""
        return self.simulator.full_scale

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """What is remembered of the windows, and the others simulated."""
        names = windows.window_id.tolist()
        new = np.array([row for row, name in enumerate(names) if name not in self.memory], np.intp)
        if len(new):
            self._add(label, windows.take(new))
        predicted = np.zeros(windows.token_ids.shape, dtype=np.float32)
        failures: dict[int, str] = {}
        mass: dict[int, float] = {}
        for row, name in enumerate(names):
            known = self.memory[name]
            if known.predicted is None:
                failures[row] = known.reason or NOT_STORED
                continue
            predicted[row, : len(known.predicted)] = known.predicted
            if known.captured_mass is not None:
                mass[row] = known.captured_mass
        return Simulated(predicted, failures, mass)

    def _add(self, label: Label, windows: Windows) -> None:
        simulated = self.simulator.simulate(label, windows)
        n_tokens = windows.is_token.sum(axis=1)
        for row, name in enumerate(windows.window_id.tolist()):
            reason = simulated.failures.get(row)
            self.memory[name] = Simulation(
                label_id=label.label_id,
                simulator=self.name,
                window_id=name,
                predicted=simulated.predicted[row, : n_tokens[row]] if reason is None else None,
                status="done" if reason is None else "failed",
                reason=reason,
                captured_mass=simulated.captured_mass.get(row),
            )
