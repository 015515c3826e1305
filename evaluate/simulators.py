"""Simulators: from a label and windows to the activations that the label predicts.

Left out: how a prediction is judged (`correlation`), and what it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from ..label.token_lookup import EXPLAINER, TokenLookup
from ..store.records import Label, Windows

NOT_ITS_OWN_LABEL = "the token lookup simulates only its own labels: it reads no words"


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulator made of windows.

    Attributes:
        predicted: the activation at each token; 0 at padding, of no meaning in failed windows.
        failures: the rows that could not be simulated, and why.
        captured_mass: by row, the mean share of a model's probability that lay on ratings; rows
            of which that is not known are left out.
    """

    predicted: Float32[np.ndarray, "W T"]
    failures: Mapping[int, str] = field(default_factory=dict)
    captured_mass: Mapping[int, float] = field(default_factory=dict)


class Simulator(Protocol):
    """Predicts activations from a label.

    Attributes:
        name: what its scores are stored under.
        depends_on_order: whether a window's prediction may depend on the windows before it. If
            so, windows come shuffled.
        full_scale: the prediction that stands for the feature's highest activation; None where
            predictions are in the activation's own units.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def depends_on_order(self) -> bool: ...  # noqa: D102

    @property
    def full_scale(self) -> float | None: ...  # noqa: D102

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """Predicts the activation at each token of the windows."""
        ...


@dataclass(frozen=True, slots=True)
class TokenLookupSimulator:
    """Predicts the mean activation of each token; the label adds nothing to it."""

    lookup: TokenLookup
    name: str = EXPLAINER
    depends_on_order: bool = False
    full_scale: float | None = None

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """Predicts by table; refuses labels that are not the lookup's own."""
        if label.explainer != EXPLAINER:
            nothing = np.zeros(windows.token_ids.shape, dtype=np.float32)
            return Simulated(nothing, dict.fromkeys(range(len(windows)), NOT_ITS_OWN_LABEL))
        return Simulated(self.lookup.predict(windows.token_ids))


def simulate_blind(simulator: Simulator, label: Label, windows: Windows, seed: int) -> Simulated:
    """Simulates with no hint, by place, of which windows are active.

    Windows come to the simulator in an order drawn from the seed, and the answers go back to
    their places. One that does not depend on the order is spared the copies.
    """
    if not simulator.depends_on_order:
        return simulator.simulate(label, windows)
    order = np.random.default_rng(seed).permutation(len(windows))
    shuffled = simulator.simulate(label, windows.take(order))
    predicted = np.empty_like(shuffled.predicted)
    predicted[order] = shuffled.predicted
    failures = {int(order[row]): why for row, why in shuffled.failures.items()}
    mass = {int(order[row]): share for row, share in shuffled.captured_mass.items()}
    return Simulated(predicted, failures, mass)
