"""What a feature remembers: mergeable sketches of bounded size.

For each feature and split: the exact top-k windows by peak, the windows with the smallest k
hashes among those in which it fires (a uniform sample of distinct windows), and additive
counts. Beside them, per split, one pool of background windows (the smallest hashes of all
windows) with the activations of all features. Memory depends on features times k, never on
the corpus.

Two windows with the same token ids are copies of one. Of copies, the top keeps the largest
peak, then the earliest occurrence; the sample and the background keep the earliest occurrence
in which the feature fires, and count the others. Every choice has a total order, so sketches
of any partition of the corpus merge to the same result in any order (`store/absorb.py` merges
those of different parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64, UInt8, UInt64

from ..store.splits import SPLITS
from .activations import Firings
from .feature_counts import FeatureCounts
from .kept_windows import (
    KeptWindows,
    falling,
    gather_rows,
    is_first,
    order_rows,
    rank_within,
    spans,
)

_ALL_HASHES = np.uint64(np.iinfo(np.uint64).max)

# Rows gathered before they are ranked against those kept.
_LEAST_PENDING = 1 << 18


@dataclass(frozen=True, slots=True)
class SketchSizes:
    """How many windows are kept, by split in the order of SPLITS.

    A window whose token ids are kept in an earlier split is dropped from the later when the
    tables are built, so sketches keep a quarter more than the tables will.
    """

    top: tuple[int, int, int] = (20, 10, 20)
    sample: tuple[int, int, int] = (20, 30, 60)
    background: tuple[int, int, int] = (1024, 1024, 4096)

    @property
    def kept_top(self) -> Int64[np.ndarray, " 3"]:
        """Top windows in the sketch."""
        return _with_reserve(self.top)

    @property
    def kept_sample(self) -> Int64[np.ndarray, " 3"]:
        """Sampled windows in the sketch."""
        return _with_reserve(self.sample)

    @property
    def kept_background(self) -> Int64[np.ndarray, " 3"]:
        """Background windows in the pool."""
        return _with_reserve(self.background)


@dataclass(frozen=True, slots=True)
class BatchWindows:
    """The windows of one batch: one row each, and where each of the batch's tokens lies."""

    split: Int8[np.ndarray, " W"]
    token_hash: UInt64[np.ndarray, " W"]
    occurrence: Int64[np.ndarray, " W"]
    in_pool: Bool[np.ndarray, " W"]
    window_of_token: Int32[np.ndarray, " T"]
    position: UInt8[np.ndarray, " T"]


class BackgroundPool:
    """Per split, the windows with the smallest hashes of all, shared by all features."""

    def __init__(self, sizes: SketchSizes) -> None:
        self._kept = sizes.kept_background
        self.threshold = np.full(len(SPLITS), _ALL_HASHES)
        self.split = np.empty(0, np.int8)
        self.token_hash = np.empty(0, np.uint64)
        self.occurrence = np.empty(0, np.int64)
        self.copies = np.empty(0, np.int64)

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
        first = np.flatnonzero(is_first(split, token_hash))
        copies = np.add.reduceat(copies[order], first)
        split, token_hash, occurrence = split[first], token_hash[first], occurrence[order][first]
        rank = rank_within(split)
        last = rank == self._kept[split] - 1
        self.threshold[split[last]] = token_hash[last]
        kept = rank < self._kept[split]
        self.split, self.token_hash = split[kept], token_hash[kept]
        self.occurrence, self.copies = occurrence[kept], copies[kept]


class FeatureSketch:
    """The sketches of all features of one SAE.

    `add` takes one batch after another, `end_chunk` closes a chunk, and `finish` ranks what is
    kept. Batches must come in the same order within a chunk for sums to be reproducible.
    """

    def __init__(self, n_features: int, sizes: SketchSizes, pool: BackgroundPool) -> None:
        n_slots = n_features * len(SPLITS)
        self.counts = FeatureCounts(n_features)
        self._pool = pool
        self._kept_top = np.tile(sizes.kept_top, n_features)
        self._kept_sample = np.tile(sizes.kept_sample, n_features)
        self._least_peak = np.zeros(n_slots, np.float32)
        self._largest_hash = np.full(n_slots, _ALL_HASHES)
        self._kept = gather_rows([])
        self._pending: list[KeptWindows] = []
        self._n_pending = 0
        self._background: list[KeptWindows] = []
        self._n_background = 0
        self._n_background_pruned = 0

    def add(self, firings: Firings, batch: BatchWindows) -> None:
        """Takes in one batch: only what enters a sketch is touched beyond counting."""
        if len(firings) == 0:
            return
        window = batch.window_of_token[firings.token]
        first = np.flatnonzero(is_first(firings.feature, window))
        length = np.diff(first, append=len(firings))
        window = window[first]
        slot = firings.feature[first].astype(np.int64) * len(SPLITS) + batch.split[window]
        peak = np.maximum.reduceat(firings.value, first)
        self.counts.add(firings, slot, first, length, peak)

        token_hash = batch.token_hash[window]
        in_top = peak >= self._least_peak[slot]
        in_sample = token_hash <= self._largest_hash[slot]

        def gather(rows: np.ndarray) -> KeptWindows:
            places = spans(first[rows], length[rows])
            return KeptWindows(
                slot=slot[rows],
                token_hash=token_hash[rows],
                occurrence=batch.occurrence[window[rows]],
                peak=peak[rows],
                copies=np.ones(len(rows), np.int64),
                in_top=in_top[rows],
                in_sample=in_sample[rows],
                length=length[rows],
                position=batch.position[firings.token[places]],
                value=firings.value[places],
            )

        entering = np.flatnonzero(in_top | in_sample)
        if len(entering):
            self._pending.append(gather(entering))
            self._n_pending += len(entering)
        pooled = np.flatnonzero(batch.in_pool[window])
        if len(pooled):
            self._background.append(gather(pooled))
            self._n_background += len(pooled)
        if self._n_pending > max(_LEAST_PENDING, len(self._kept)):
            self._rank()
        if self._n_background > 2 * max(_LEAST_PENDING, self._n_background_pruned):
            self._prune_background()

    def end_chunk(self) -> None:
        """Closes a chunk: its sums are rounded once, whatever it is later combined with."""
        self.counts.end_chunk()

    def finish(self) -> tuple[KeptWindows, KeptWindows]:
        """What is kept: the contexts, by slot and hash, and the background, by slot."""
        self._rank()
        return self._kept, self._finish_background()

    @property
    def occurrences(self) -> list[Int64[np.ndarray, " K"]]:
        """Occurrences of windows that are kept or may be."""
        return [rows.occurrence for rows in (self._kept, *self._pending, *self._background)]

    def _rank(self) -> None:
        rows = gather_rows([self._kept, *self._pending])
        self._pending, self._n_pending = [], 0
        order = order_rows(rows.slot, rows.token_hash, rows.token_hash, rows.occurrence)
        slot, token_hash = rows.slot[order], rows.token_hash[order]
        opens_group = is_first(slot, token_hash)
        first = np.flatnonzero(opens_group)
        group = np.cumsum(opens_group) - 1

        # The sample: the first occurrence of each distinct window, with its copies.
        in_sample = rows.in_sample[order]
        copies = np.where(in_sample, rows.copies[order], 0)
        copies = np.add.reduceat(copies, first) if len(first) else copies
        sampled = np.flatnonzero(opens_group & in_sample)
        rank = rank_within(slot[sampled])
        limit = self._kept_sample[slot[sampled]]
        ends = sampled[rank == limit - 1]
        self._largest_hash[slot[ends]] = token_hash[ends]
        stays_in_sample = np.zeros(len(order), np.bool_)
        stays_in_sample[sampled[rank < limit]] = True

        # The top: the best occurrence of each distinct window, by peak.
        best = self._best_of_copies(rows, order, group)
        peak = rows.peak[order[best]]
        occurrence = rows.occurrence[order[best]]
        by_peak = order_rows(slot[best], falling(peak), -peak, occurrence)
        best, peak = best[by_peak], peak[by_peak]
        rank = rank_within(slot[best])
        limit = self._kept_top[slot[best]]
        ends = np.flatnonzero(rank == limit - 1)
        self._least_peak[slot[best[ends]]] = peak[ends]
        stays_in_top = np.zeros(len(order), np.bool_)
        stays_in_top[best[rank < limit]] = True

        stays = np.flatnonzero(stays_in_sample | stays_in_top)
        self._kept = rows.take(
            order[stays],
            copies=np.where(stays_in_sample[stays], copies[group[stays]], 0),
            in_top=stays_in_top[stays],
            in_sample=stays_in_sample[stays],
        )

    @staticmethod
    def _best_of_copies(
        rows: KeptWindows, order: Int64[np.ndarray, " K"], group: Int64[np.ndarray, " K"]
    ) -> Int64[np.ndarray, " B"]:
        """Places in `order`: of each group's candidates for the top the highest, then earliest."""
        candidates = np.flatnonzero(rows.in_top[order])
        of = group[candidates]
        # Nearly all windows are alone: only among copies is there anything to choose.
        is_copy = np.zeros(len(of), np.bool_)
        is_copy[1:] = of[1:] == of[:-1]
        is_copy[:-1] |= is_copy[1:]
        copies = candidates[is_copy]
        copies = copies[np.lexsort((copies, -rows.peak[order[copies]], group[copies]))]
        best = copies[is_first(group[copies])]
        return np.sort(np.concatenate([candidates[~is_copy], best]))

    def _prune_background(self) -> None:
        """Forgets the rows of windows that have left the pool, if they are many."""
        stays = [
            rows.token_hash <= self._pool.threshold[rows.slot % len(SPLITS)]
            for rows in self._background
        ]
        n_staying = sum(int(each.sum()) for each in stays)
        if n_staying < 0.75 * self._n_background:
            kept = zip(self._background, stays, strict=True)
            self._background = [rows.take(np.flatnonzero(each)) for rows, each in kept]
            self._n_background = n_staying
        self._n_background_pruned = self._n_background

    def _finish_background(self) -> KeptWindows:
        """The pool's rows, of copies the earliest occurrence in which the feature fires."""
        pool = self._pool
        rows = gather_rows(self._background)
        in_pool = rows.token_hash <= pool.threshold[rows.slot % len(SPLITS)]
        is_copy = in_pool & np.isin(rows.token_hash, pool.token_hash[pool.copies > 1])
        copies = np.flatnonzero(is_copy)
        order = copies[
            np.lexsort((rows.occurrence[copies], rows.token_hash[copies], rows.slot[copies]))
        ]
        earliest = order[is_first(rows.slot[order], rows.token_hash[order])]
        stays = np.concatenate([np.flatnonzero(in_pool & ~is_copy), earliest])
        return rows.take(stays[np.argsort(rows.slot[stays], kind="stable")])


def _with_reserve(sizes: Sequence[int]) -> Int64[np.ndarray, " 3"]:
    return np.array([size + max(4, size // 4) if size else 0 for size in sizes], np.int64)
