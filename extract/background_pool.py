"""The background: per split the windows with the smallest hashes of all, for every feature.

Which windows are in the pool depends on their token ids alone, so one pool serves all SAEs; what
fires in them is held window by window, so that a window leaves with all that belongs to it, and
on disk (`firings_file.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int8, Int64, UInt64

from ..store.background import WindowFirings, fold_copies
from ..store.splits import SPLITS
from .activations import Firings
from .firing_passes import BatchWindows, gather_by_window
from .firings_file import FiringsFile, StoredFirings

# Windows that have left the pool and are not forgotten yet, beside a tenth.
_SPARE_WINDOWS = 64
_ALL_HASHES = np.uint64(np.iinfo(np.uint64).max)


class BackgroundPool:
    """Per split, the windows with the smallest hashes of all, shared by all features.

    Args:
        kept: how many, by split.
    """

    def __init__(self, kept: Int64[np.ndarray, " 3"]) -> None:
        self._kept = kept
        self.threshold = np.full(len(SPLITS), _ALL_HASHES)
        self.split = np.empty(0, np.int8)
        self.token_hash = np.empty(0, np.uint64)
        self.occurrence = np.empty(0, np.int64)
        self.copies = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.split)

    def admit(
        self,
        split: Int8[np.ndarray, " W"],
        token_hash: UInt64[np.ndarray, " W"],
        occurrence: Int64[np.ndarray, " W"],
    ) -> Bool[np.ndarray, " W"]:
        """Takes in windows; true for those that are now in the pool (later ones may oust them)."""
        enters = token_hash <= self.threshold[split]
        if enters.any():
            self._rank(
                np.concatenate([self.split, split[enters]]),
                np.concatenate([self.token_hash, token_hash[enters]]),
                np.concatenate([self.occurrence, occurrence[enters]]),
                np.concatenate([self.copies, np.ones(int(enters.sum()), np.int64)]),
            )
        admitted: Bool[np.ndarray, " W"] = token_hash <= self.threshold[split]
        return admitted

    def _rank(
        self, split: np.ndarray, token_hash: np.ndarray, occurrence: np.ndarray, copies: np.ndarray
    ) -> None:
        order = np.lexsort((occurrence, token_hash, split))
        split, token_hash = split[order], token_hash[order]
        first = np.flatnonzero(_is_first(split, token_hash))
        copies = np.add.reduceat(copies[order], first)
        split, token_hash, occurrence = split[first], token_hash[first], occurrence[order][first]
        rank = _rank_within(split)
        last = rank == self._kept[split] - 1
        self.threshold[split[last]] = token_hash[last]
        kept = rank < self._kept[split]
        self.split, self.token_hash = split[kept], token_hash[kept]
        self.occurrence, self.copies = occurrence[kept], copies[kept]


class PoolFirings:
    """What one SAE's features do in the windows of the pool.

    Args:
        pool: which windows these are.
        folder: on whose disk the firings lie until they are drained.
    """

    def __init__(self, pool: BackgroundPool, folder: Path | None = None) -> None:
        self._pool = pool
        self._file = FiringsFile(folder)
        self._windows: dict[tuple[int, int], list[StoredFirings]] = {}

    def add(self, firings: Firings, batch: BatchWindows) -> None:
        """Takes in the windows of one batch that were admitted to the pool."""
        windows = np.flatnonzero(batch.in_pool)
        if not len(windows):
            return
        place = np.full(len(batch.in_pool), -1, np.int32)
        place[windows] = np.arange(len(windows))
        by_window = gather_by_window(
            firings.feature, firings.token, firings.value, batch, place, len(windows)
        )
        for number, window in enumerate(windows):
            groups = slice(by_window.n_groups[number], by_window.n_groups[number + 1])
            fired = slice(by_window.n_firings[number], by_window.n_firings[number + 1])
            new = WindowFirings(
                int(batch.occurrence[window]),
                by_window.feature[groups],
                by_window.length[groups],
                by_window.position[fired],
                by_window.activation[fired],
            )
            key = int(batch.split[window]), int(batch.token_hash[window])
            copies = [new]
            if key in self._windows:
                copies = fold_copies([*map(self._file.read, self._windows[key]), new])
            self._windows[key] = [self._file.add(each) for each in copies]
        if len(self._windows) > _SPARE_WINDOWS + 1.1 * len(self._pool):
            self._forget_ousted()

    def _forget_ousted(self) -> None:
        """Forgets windows that have left the pool."""
        pool = self._pool
        keys = zip(pool.split.tolist(), pool.token_hash.tolist(), strict=True)
        self._windows = {key: self._windows[key] for key in keys if key in self._windows}
        self._file.compact(self._windows)

    def drain(self) -> Iterator[tuple[int, int, WindowFirings]]:
        """Split, token hash and firings of each window, in this order; afterwards all is gone."""
        self._forget_ousted()
        for (split, token_hash), copies in sorted(self._windows.items()):
            for stored in copies:
                yield split, token_hash, self._file.read(stored)
        self._windows.clear()
        self._file.close()

    @property
    def occurrences(self) -> Int64[np.ndarray, " K"]:
        """Where the windows stand whose firings are held."""
        held = [each.occurrence for copies in self._windows.values() for each in copies]
        return np.array(held, np.int64)


def _is_first(*keys: np.ndarray) -> Bool[np.ndarray, " K"]:
    """True where a row differs from the one before it in any key."""
    first = np.ones(len(keys[0]), np.bool_)
    if len(first) > 1:
        first[1:] = keys[0][1:] != keys[0][:-1]
        for key in keys[1:]:
            first[1:] |= key[1:] != key[:-1]
    return first


def _rank_within(group: np.ndarray) -> Int64[np.ndarray, " K"]:
    """Each row's place among the rows of its group, from 0; groups lie together."""
    starts = np.flatnonzero(_is_first(group))
    rank: Int64[np.ndarray, " K"] = np.arange(len(group)) - np.repeat(
        starts, np.diff(starts, append=len(group))
    )
    return rank
