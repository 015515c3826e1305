"""Rows of windows kept for features, in memory that is asked for once and used again.

Rows come and go with every batch; were each batch's rows arrays of their own, what is kept for
long would lie scattered between what is needed for a moment, and memory would grow with the text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt16, UInt64

from .activations import Firings
from .firing_passes import ENTERS_SAMPLE, ENTERS_TOP, BatchWindows, Entering, compiled


class KeptWindows(NamedTuple):
    """Windows kept for features, one row each; activations lie one after another.

    Attributes:
        slot: feature times three plus the split's number.
        copies: active occurrences that the row stands for (the sample's rows only).
        length: how many activations the row has in `position` and `value`.
    """

    slot: Int32[np.ndarray, " K"]
    token_hash: UInt64[np.ndarray, " K"]
    occurrence: Int64[np.ndarray, " K"]
    peak: Float32[np.ndarray, " K"]
    copies: Int32[np.ndarray, " K"]
    in_top: Bool[np.ndarray, " K"]
    in_sample: Bool[np.ndarray, " K"]
    length: UInt16[np.ndarray, " K"]
    position: UInt8[np.ndarray, " N"]
    value: Float32[np.ndarray, " N"]

    @classmethod
    def with_room(cls, n_rows: int, n_activations: int) -> KeptWindows:
        """Room for so many."""
        return cls(
            slot=np.empty(n_rows, np.int32),
            token_hash=np.empty(n_rows, np.uint64),
            occurrence=np.empty(n_rows, np.int64),
            peak=np.empty(n_rows, np.float32),
            copies=np.empty(n_rows, np.int32),
            in_top=np.empty(n_rows, np.bool_),
            in_sample=np.empty(n_rows, np.bool_),
            length=np.empty(n_rows, np.uint16),
            position=np.empty(n_activations, np.uint8),
            value=np.empty(n_activations, np.float32),
        )

    def first(self, n_rows: int, n_activations: int) -> KeptWindows:
        """The first rows and activations; not copied."""
        return KeptWindows(
            *(c[:n_rows] for c in self[:-2]), *(c[:n_activations] for c in self[-2:])
        )


class Staying(NamedTuple):
    """The rows that stay, by slot and hash.

    Attributes:
        row: which of those gathered.
        copies: the occurrences that the row stands for in the sample; 0 outside of it.
    """

    row: Int64[np.ndarray, " K"]
    copies: Int32[np.ndarray, " K"]
    in_top: Bool[np.ndarray, " K"]
    in_sample: Bool[np.ndarray, " K"]


class KeptRows:
    """A growing table of kept windows, and room for the next after each choice."""

    def __init__(self) -> None:
        self._table = KeptWindows.with_room(0, 0)
        self._next = self._table
        self._n_rows = self._n_activations = 0

    def __len__(self) -> int:
        return self._n_rows

    @property
    def windows(self) -> KeptWindows:
        """All rows; they may change with the next call."""
        return self._table.first(self._n_rows, self._n_activations)

    def append(self, firings: Firings, batch: BatchWindows, entering: Entering) -> None:
        """Adds the groups of a batch that enter a sketch, with their activations."""
        n_rows = self._n_rows + len(entering.slot)
        n_activations = self._n_activations + int(entering.length.sum(dtype=np.int64))
        if n_rows > len(self._table.slot) or n_activations > len(self._table.value):
            held = self.windows
            self._table = KeptWindows.with_room(int(1.25 * n_rows), int(1.25 * n_activations))
            for old, new in zip(held, self._table, strict=True):
                new[: len(old)] = old
        _append(
            self._table,
            self._n_rows,
            self._n_activations,
            firings.token,
            firings.value,
            batch,
            entering,
        )
        self._n_rows, self._n_activations = n_rows, n_activations

    def choose(self, stays: Staying) -> None:
        """Leaves only the rows that stay, in their order."""
        if len(self._next.slot) < len(self._table.slot) or len(self._next.value) < len(
            self._table.value
        ):
            self._next = KeptWindows.with_room(len(self._table.slot), len(self._table.value))
        self._n_activations = _move(self.windows, stays, self._next)
        self._n_rows = len(stays.row)
        self._table, self._next = self._next, self._table


@compiled
def _append(
    table: KeptWindows,
    n_rows: int,
    n_activations: int,
    token: np.ndarray,
    value: np.ndarray,
    batch: BatchWindows,
    entering: Entering,
) -> None:
    """Writes the groups after the rows that are there."""
    at = n_activations
    for number in range(len(entering.slot)):
        row, window = n_rows + number, entering.window[number]
        table.slot[row] = entering.slot[number]
        table.token_hash[row] = batch.token_hash[window]
        table.occurrence[row] = batch.occurrence[window]
        table.peak[row] = entering.peak[number]
        table.copies[row] = 1
        table.in_top[row] = (entering.enters[number] & ENTERS_TOP) != 0
        table.in_sample[row] = (entering.enters[number] & ENTERS_SAMPLE) != 0
        table.length[row] = entering.length[number]
        for i in range(entering.first[number], entering.first[number] + entering.length[number]):
            table.position[at] = batch.position[token[i]]
            table.value[at] = value[i]
            at += 1


@compiled
def _move(table: KeptWindows, stays: Staying, target: KeptWindows) -> int:
    """Writes the rows that stay to the beginning of `target`; gives how many activations."""
    begins = np.empty(len(table.slot), np.int64)
    begin = 0
    for row in range(len(table.slot)):
        begins[row] = begin
        begin += table.length[row]
    at = 0
    for number in range(len(stays.row)):
        row = stays.row[number]
        target.slot[number] = table.slot[row]
        target.token_hash[number] = table.token_hash[row]
        target.occurrence[number] = table.occurrence[row]
        target.peak[number] = table.peak[row]
        target.copies[number] = stays.copies[number]
        target.in_top[number] = stays.in_top[number]
        target.in_sample[number] = stays.in_sample[number]
        target.length[number] = table.length[row]
        for i in range(begins[row], begins[row] + np.int64(table.length[row])):
            target.position[at] = table.position[i]
            target.value[at] = table.value[i]
            at += 1
    return at
