"""How much of what it is to reconstruct an SAE accounts for, measured on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64

from ..store.errors import FidelityMismatch
from .activations import Firings, reconstruct
from .saes import Sae

# Of so many tokens one is reconstructed: decoding all would cost as much as encoding.
FIDELITY_STRIDE = 64

# Tokens after which an SAE that does not fit is told from chance.
LEAST_TOKENS = 16_384


@dataclass(slots=True)
class FidelitySums:
    """Moments of what one SAE is to reconstruct and of its error, from which FVU follows.

    The fraction of variance unexplained is the squared error over the squared distance from
    the mean vector, both summed over tokens and coordinates.
    """

    n_tokens: int
    sum_x: Float64[np.ndarray, " D"]
    sum_x_sq: float
    sum_error_sq: float

    @classmethod
    def measure(
        cls,
        sae: Sae,
        x: Float[torch.Tensor, "T D"],
        target: Float[torch.Tensor, "T D"],
        firings: Firings,
    ) -> FidelitySums:
        """Moments of every FIDELITY_STRIDE-th of these tokens.

        Args:
            sae: on the device of `x` and `target`.
            x: the vectors at the site that it reads.
            target: those at the site that it reconstructs.
            firings: what it fires with on these tokens.
        """
        fired = firings.every(FIDELITY_STRIDE)
        # Summed on the host: a few tokens, and not every device has float64.
        exact = target[::FIDELITY_STRIDE].cpu().double()
        error = exact - reconstruct(sae, fired, x[::FIDELITY_STRIDE]).cpu().double()
        return cls(
            n_tokens=len(exact),
            sum_x=exact.sum(0).numpy(),
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

    @property
    def fvu(self) -> float | None:
        """Fraction of variance unexplained; None where nothing varies."""
        if not self.n_tokens:
            return None
        variance = self.sum_x_sq - float(np.square(self.sum_x).sum()) / self.n_tokens
        return self.sum_error_sq / variance if variance > 0 else None


class FidelityWatch:
    """Watches, as text goes by, that each SAE does what can be expected of it."""

    def __init__(self, saes: list[Sae]) -> None:
        self._saes = saes
        self._n_tokens = 0
        self._n_active = [0] * len(saes)
        self._sums: list[FidelitySums | None] = [None] * len(saes)

    def add(self, n_tokens: int, n_active: list[int], sums: list[FidelitySums]) -> None:
        """Takes in a batch's tokens and, by SAE, its firings and moments.

        Raises:
            FidelityMismatch: an SAE does not fit what it reads.
        """
        self._n_tokens += n_tokens
        for number, sae in enumerate(self._saes):
            self._n_active[number] += n_active[number]
            before = self._sums[number]
            self._sums[number] = total = sums[number] if before is None else before + sums[number]
            if self._n_tokens >= LEAST_TOKENS:
                check_fidelity(sae, self._n_active[number] / self._n_tokens, total.fvu)


def check_fidelity(sae: Sae, mean_l0: float, fvu: float | None) -> None:
    """Makes sure that the SAE does on this text what can be expected of it.

    Args:
        sae: with the L0 that its folder's name states, if it does.
        mean_l0: active features per token, as measured.
        fvu: fraction of variance unexplained, as measured.

    Raises:
        FidelityMismatch: L0 is off by more than a factor of two, or the reconstruction is worse
            than the mean vector. The usual cause is a tensor, a layer or a model for which the
            SAE was not trained; it still encodes without complaint.
    """
    if sae.source.is_neuron_basis:
        # It was trained for nothing that it could be unfit for. It reconstructs nothing of a
        # coordinate that is off zero most of the time, so FVU may well exceed 1.
        return
    stated, found = sae.source.stated_l0, []
    if stated and not stated / 2 <= mean_l0 <= stated * 2:
        found.append(f"{mean_l0:.1f} active features a token")
    if fvu is not None and fvu > 1:
        found.append(f"a fraction of variance unexplained of {fvu:.2f}")
    if found:
        target = "" if sae.target == sae.site else f" and reconstructs the {sae.target.tensor}"
        expected = [f"about {stated:g} active features a token"] if stated else []
        raise FidelityMismatch(
            "The SAE does not fit what it reads: probably it was trained on another tensor.",
            where=f"{sae.source.source}, which reads the {sae.site.tensor}{target}",
            found=" and ".join(found),
            expected=", ".join([*expected, "a fraction of variance unexplained below 1"]),
            mend="check the SAE's layer and site and the model's name; for text of another kind "
            "than the SAE's own, --allow-mismatch goes on all the same",
        )
