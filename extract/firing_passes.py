"""Compiled passes over activations: what is done for every single firing.

A token fires some 60 features of an SAE, and each of those firings is looked at: counted,
summed, compared with what is kept. In NumPy every such step is a pass of its own over arrays of
hundreds of thousands; here one loop does them all, without holding the interpreter's lock. The
slow twins are in the tests.

Firings lie by feature, then token; those of one feature in one window are a *group*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Int64, UInt8, UInt16, UInt64

from .windows import SequenceBatch

# What a group may enter.
ENTERS_TOP, ENTERS_SAMPLE = 1, 2

# Half-octaves from 2^-6 to 2^14; the first and last bin take what lies beyond.
HISTOGRAM_EDGES: tuple[float, ...] = tuple(
    base * 2.0**exponent for exponent in range(-6, 14) for base in (1.0, 1.5)
)
# A float's exponent and the first bit of its fraction number the half-octaves.
_FIRST_BIN_BITS = int(np.float32(HISTOGRAM_EDGES[0]).view(np.int32)) >> 22

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compiles a function when it is first called, to run without the interpreter's lock.

    The machine code is kept on disk beside the source, or in the user's cache where that cannot
    be written.
    """
    # numba's decorator has no types.
    return cast(_Function, numba.njit(nogil=True, cache=True)(function))


class BatchWindows(NamedTuple):
    """The windows of one batch: one row each, and where each of the batch's tokens lies.

    Attributes:
        in_pool: whether the window was admitted to the background pool.
    """

    split: Int8[np.ndarray, " W"]
    token_hash: UInt64[np.ndarray, " W"]
    occurrence: Int64[np.ndarray, " W"]
    in_pool: Bool[np.ndarray, " W"]
    window_of_token: Int32[np.ndarray, " T"]
    position: UInt8[np.ndarray, " T"]

    def of(self, batch: SequenceBatch, windows: slice) -> BatchWindows:
        """Those of a batch that is a part of this one."""
        return BatchWindows(
            split=self.split[windows],
            token_hash=self.token_hash[windows],
            occurrence=self.occurrence[windows],
            in_pool=self.in_pool[windows],
            window_of_token=batch.window_of_token,
            position=batch.position,
        )


class EntryLevels(NamedTuple):
    """What enters a sketch, by slot (feature and split).

    Attributes:
        least_peak: enters the top, as does any above it.
        largest_hash: enters the sample, as does any below it.
    """

    least_peak: Float32[np.ndarray, " S"]
    largest_hash: UInt64[np.ndarray, " S"]


class FeatureCounts(NamedTuple):
    """Additive statistics of an SAE's features.

    Sums do not depend on grouping: they are held as a whole part and 2^-32ths, each an integer.
    The float64 sum of a feature in a batch is rounded to 2^-32 once; adding integers is
    associative, where adding floats is not, and needs no list of batches.

    Attributes:
        n_active_windows, n_active: by slot, windows and tokens in which the feature fires.
        sums, sums_sq: by slot, of activations and of their squares.
        histogram: by feature, active tokens by activation.
        max_activation: by feature.
    """

    n_active_windows: Int64[np.ndarray, " S"]
    n_active: Int64[np.ndarray, " S"]
    sums: Int64[np.ndarray, "S 2"]
    sums_sq: Int64[np.ndarray, "S 2"]
    histogram: Int64[np.ndarray, "F H"]
    max_activation: Float32[np.ndarray, " F"]

    @classmethod
    def zeros(cls, n_features: int, n_splits: int) -> FeatureCounts:
        """Nothing counted yet."""
        n_slots = n_features * n_splits
        return cls(
            n_active_windows=np.zeros(n_slots, np.int64),
            n_active=np.zeros(n_slots, np.int64),
            sums=np.zeros((n_slots, 2), np.int64),
            sums_sq=np.zeros((n_slots, 2), np.int64),
            histogram=np.zeros((n_features, len(HISTOGRAM_EDGES)), np.int64),
            max_activation=np.zeros(n_features, np.float32),
        )


class Entering(NamedTuple):
    """Groups that enter a sketch.

    Attributes:
        slot: feature times the number of splits plus the split's number.
        window: within the batch.
        first, length: where the group's firings lie.
        peak: its highest activation.
        enters: ENTERS_TOP, ENTERS_SAMPLE or both.
    """

    slot: Int32[np.ndarray, " K"]
    window: Int32[np.ndarray, " K"]
    first: Int64[np.ndarray, " K"]
    length: UInt16[np.ndarray, " K"]
    peak: Float32[np.ndarray, " K"]
    enters: UInt8[np.ndarray, " K"]


class FiringsByWindow(NamedTuple):
    """The firings of some windows, by window, then feature.

    Attributes:
        n_groups, n_firings: how many lie before each window, and all at the end.
        feature, length: of each group.
        position, activation: of each firing.
    """

    n_groups: Int64[np.ndarray, " V"]
    n_firings: Int64[np.ndarray, " V"]
    feature: Int32[np.ndarray, " G"]
    length: UInt16[np.ndarray, " G"]
    position: UInt8[np.ndarray, " N"]
    activation: Float32[np.ndarray, " N"]


@compiled
def find_above(
    pre: np.ndarray,
    threshold: np.ndarray,
    begin: int,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> int:
    """Lists what is strictly above its feature's threshold; gives how many.

    Args:
        pre: a block of pre-activations, features by tokens.
        threshold: of its features.
        begin: the block's first feature.
        found: filled with features, tokens and activations; as long as the block is large.
    """
    feature, token, value = found
    n = 0
    for row in range(pre.shape[0]):
        least = threshold[row]
        for column in range(pre.shape[1]):
            activation = pre[row, column]
            if activation > least:
                feature[n] = begin + row
                token[n] = column
                value[n] = activation
                n += 1
    return n


@compiled
def count_and_select(
    feature: np.ndarray,
    token: np.ndarray,
    value: np.ndarray,
    windows: BatchWindows,
    n_splits: int,
    levels: EntryLevels,
    counts: FeatureCounts,
) -> Entering:
    """Adds one batch's firings to the counts, and lists the groups that enter a sketch."""
    n = len(feature)
    e_slot, e_window = np.empty(n, np.int32), np.empty(n, np.int32)
    e_first, e_length = np.empty(n, np.int64), np.empty(n, np.uint16)
    e_peak, e_enters = np.empty(n, np.float32), np.empty(n, np.uint8)
    n_entering = 0
    bits = value.view(np.int32)
    last_bin = counts.histogram.shape[1] - 1
    total, total_sq = np.zeros(n_splits), np.zeros(n_splits)
    i = 0
    while i < n:
        of = feature[i]
        total[:] = 0.0
        total_sq[:] = 0.0
        while i < n and feature[i] == of:
            first = i
            window = windows.window_of_token[token[i]]
            split = windows.split[window]
            peak = value[i]
            while i < n and feature[i] == of and windows.window_of_token[token[i]] == window:
                peak = max(peak, value[i])
                exact = np.float64(value[i])
                total[split] += exact
                total_sq[split] += exact * exact
                half_octave = (bits[i] >> 22) - _FIRST_BIN_BITS
                counts.histogram[of, min(max(half_octave, 0), last_bin)] += 1
                i += 1
            slot = of * n_splits + split
            counts.n_active_windows[slot] += 1
            counts.n_active[slot] += i - first
            counts.max_activation[of] = max(counts.max_activation[of], peak)
            enters = 0
            if peak >= levels.least_peak[slot]:
                enters |= ENTERS_TOP
            if windows.token_hash[window] <= levels.largest_hash[slot]:
                enters |= ENTERS_SAMPLE
            if enters:
                e_slot[n_entering], e_window[n_entering] = slot, window
                e_first[n_entering], e_length[n_entering] = first, i - first
                e_peak[n_entering], e_enters[n_entering] = peak, enters
                n_entering += 1
        for split in range(n_splits):
            _add_exactly(counts.sums[of * n_splits + split], total[split])
            _add_exactly(counts.sums_sq[of * n_splits + split], total_sq[split])
    # Copied, so that room for all groups is given back.
    return Entering(
        e_slot[:n_entering].copy(),
        e_window[:n_entering].copy(),
        e_first[:n_entering].copy(),
        e_length[:n_entering].copy(),
        e_peak[:n_entering].copy(),
        e_enters[:n_entering].copy(),
    )


@compiled
def _add_exactly(total: np.ndarray, addend: float) -> None:
    """Adds a number, rounded to 2^-32, to a sum held as whole part and 2^-32ths."""
    whole = np.floor(addend)
    fraction = total[1] + np.int64(np.rint((addend - whole) * 4294967296.0))
    carry = fraction >> 32
    total[0] += np.int64(whole) + carry
    total[1] = fraction - (carry << 32)


@compiled
def gather_by_window(
    feature: np.ndarray,
    token: np.ndarray,
    value: np.ndarray,
    windows: BatchWindows,
    place: np.ndarray,
    n_places: int,
) -> FiringsByWindow:
    """Lays out the firings of some windows by window.

    Args:
        feature: of each firing of the batch.
        token: of each firing.
        value: of each firing.
        windows: the batch's.
        place: each window's number among those wanted, or -1.
        n_places: how many are wanted.
    """
    n = len(feature)
    n_groups, n_firings = np.zeros(n_places + 1, np.int64), np.zeros(n_places + 1, np.int64)
    for i in range(n):
        window = windows.window_of_token[token[i]]
        if place[window] >= 0:
            n_firings[place[window] + 1] += 1
            follows = i > 0 and feature[i - 1] == feature[i]
            if not follows or windows.window_of_token[token[i - 1]] != window:
                n_groups[place[window] + 1] += 1
    n_groups, n_firings = np.cumsum(n_groups), np.cumsum(n_firings)
    g_feature, g_length = np.empty(n_groups[-1], np.int32), np.empty(n_groups[-1], np.uint16)
    position, activation = np.empty(n_firings[-1], np.uint8), np.empty(n_firings[-1], np.float32)
    next_group, next_firing = n_groups.copy(), n_firings.copy()
    i = 0
    while i < n:
        of, window, first = feature[i], windows.window_of_token[token[i]], i
        wanted = place[window]
        while i < n and feature[i] == of and windows.window_of_token[token[i]] == window:
            if wanted >= 0:
                position[next_firing[wanted]] = windows.position[token[i]]
                activation[next_firing[wanted]] = value[i]
                next_firing[wanted] += 1
            i += 1
        if wanted >= 0:
            g_feature[next_group[wanted]], g_length[next_group[wanted]] = of, i - first
            next_group[wanted] += 1
    return FiringsByWindow(n_groups, n_firings, g_feature, g_length, position, activation)
