"""How much of a site's activity an SAE accounts for, measured on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64

from .activations import Firings, reconstruct
from .saes import Sae

# Of so many tokens one is reconstructed: decoding all would cost as much as encoding.
FIDELITY_STRIDE = 64


@dataclass(slots=True)
class FidelitySums:
    """Moments of one SAE's input and error, from which FVU follows.

    The fraction of variance unexplained is the squared error over the squared distance from
    the mean vector, both summed over tokens and coordinates.
    """

    n_tokens: int
    sum_x: Float64[np.ndarray, " D"]
    sum_x_sq: float
    sum_error_sq: float

    @classmethod
    def measure(cls, sae: Sae, x: Float[torch.Tensor, "T D"], firings: Firings) -> FidelitySums:
        """Moments of every FIDELITY_STRIDE-th of these tokens."""
        fired = firings.every(FIDELITY_STRIDE)
        exact = x[::FIDELITY_STRIDE].double()
        error = exact - reconstruct(sae, fired, len(exact)).double()
        return cls(
            n_tokens=len(exact),
            sum_x=exact.sum(0).cpu().numpy(),
            sum_x_sq=float(exact.square().sum()),
            sum_error_sq=float(error.square().sum()),
        )

    def __add__(self, other: FidelitySums) -> FidelitySums:
        return FidelitySums(
            self.n_tokens + other.n_tokens,
            self.sum_x + other.sum_x,
            self.sum_x_sq + other.sum_x_sq,
            self.sum_error_sq + other.sum_error_sq,
        )
