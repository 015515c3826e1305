"""Additive statistics of features: what merges by adding up."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ..store.splits import SPLITS
from .activations import Firings
from .kept_windows import is_first


@dataclass(slots=True)
class ExactSums:
    """Sums that do not depend on grouping: whole part and 2^-32ths, each in an integer.

    Each chunk's float64 sum is rounded to 2^-32 once; adding integers is associative, where
    adding floats is not, and needs no list of chunks.
    """

    whole: Int64[np.ndarray, " S"]
    fraction: Int64[np.ndarray, " S"]

    @classmethod
    def zeros(cls, n: int) -> ExactSums:
        """N sums of nothing."""
        return cls(np.zeros(n, np.int64), np.zeros(n, np.int64))

    def add(self, sums: Float64[np.ndarray, " S"]) -> None:
        """Adds one chunk's sums."""
        whole = np.floor(sums)
        self.whole += whole.astype(np.int64)
        self.fraction += np.rint((sums - whole) * 2.0**32).astype(np.int64)
        carry = self.fraction >> 32
        self.whole += carry
        self.fraction -= carry << 32


# Half-octaves from 2^-6 to 2^14; the first and last bin take what lies beyond.
HISTOGRAM_EDGES: tuple[float, ...] = tuple(
    base * 2.0**exponent for exponent in range(-6, 14) for base in (1.0, 1.5)
)
_N_BINS = len(HISTOGRAM_EDGES)
_FIRST_BIN_BITS = int(np.float32(HISTOGRAM_EDGES[0]).view(np.int32)) >> 22


@dataclass(slots=True)
class FeatureCounts:
    """Additive statistics of an SAE's features."""

    n_features: int
    n_active_windows: Int64[np.ndarray, " S"] = field(init=False)
    n_active: Int64[np.ndarray, " S"] = field(init=False)
    sum: ExactSums = field(init=False)
    sum_sq: ExactSums = field(init=False)
    histogram: Int64[np.ndarray, "F H"] = field(init=False)
    max_activation: Float32[np.ndarray, " F"] = field(init=False)
    _chunk_sum: Float64[np.ndarray, " S"] = field(init=False)
    _chunk_sum_sq: Float64[np.ndarray, " S"] = field(init=False)

    def __post_init__(self) -> None:
        n_slots = self.n_features * len(SPLITS)
        self.n_active_windows = np.zeros(n_slots, np.int64)
        self.n_active = np.zeros(n_slots, np.int64)
        self.sum, self.sum_sq = ExactSums.zeros(n_slots), ExactSums.zeros(n_slots)
        self.histogram = np.zeros((self.n_features, _N_BINS), np.int64)
        self.max_activation = np.zeros(self.n_features, np.float32)
        self._chunk_sum, self._chunk_sum_sq = np.zeros(n_slots), np.zeros(n_slots)

    def add(
        self,
        firings: Firings,
        slot: np.ndarray,
        first: np.ndarray,
        length: np.ndarray,
        peak: np.ndarray,
    ) -> None:
        """Adds one batch, grouped by feature and window.

        Args:
            firings: the batch's, by feature, then token.
            slot: of each group, feature times the number of splits plus the split's number.
            first: where each group begins in the firings.
            length: how many firings it has.
            peak: its highest activation.
        """
        n_slots = len(self.n_active)
        value = firings.value.astype(np.float64)
        self.n_active_windows += np.bincount(slot, minlength=n_slots)
        self.n_active += np.bincount(slot, length, n_slots).astype(np.int64)
        self._chunk_sum += np.bincount(slot, np.add.reduceat(value, first), n_slots)
        self._chunk_sum_sq += np.bincount(slot, np.add.reduceat(value * value, first), n_slots)
        # The exponent and the first bit of the fraction, straight from the float's bits.
        bins = (firings.value.view(np.int32) >> 22) - _FIRST_BIN_BITS
        np.clip(bins, 0, _N_BINS - 1, out=bins)
        cells = firings.feature.astype(np.int64) * _N_BINS + bins
        self.histogram += np.bincount(cells, minlength=self.histogram.size).reshape(-1, _N_BINS)
        feature = slot // len(SPLITS)
        starts = np.flatnonzero(is_first(feature))
        fired = feature[starts]
        self.max_activation[fired] = np.maximum(
            self.max_activation[fired], np.maximum.reduceat(peak, starts)
        )

    def end_chunk(self) -> None:
        """Rounds the chunk's sums, once, and adds them."""
        self.sum.add(self._chunk_sum)
        self.sum_sq.add(self._chunk_sum_sq)
        self._chunk_sum[:] = 0
        self._chunk_sum_sq[:] = 0
