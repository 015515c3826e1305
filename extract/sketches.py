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
from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8, Int32, Int64, UInt8, UInt64

from ..store.splits import SPLITS
from .activations import Firings

_N_SPLITS = len(SPLITS)
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


@dataclass(frozen=True, slots=True)
class KeptWindows:
    """Windows kept for features, one row each; activations lie one after another.

    Attributes:
        slot: feature times three plus the split's number.
        copies: active occurrences that the row stands for (the sample's rows only).
        length: how many activations the row has in `position` and `value`.
    """

    slot: Int64[np.ndarray, " K"]
    token_hash: UInt64[np.ndarray, " K"]
    occurrence: Int64[np.ndarray, " K"]
    peak: Float32[np.ndarray, " K"]
    copies: Int64[np.ndarray, " K"]
    in_top: Bool[np.ndarray, " K"]
    in_sample: Bool[np.ndarray, " K"]
    length: Int64[np.ndarray, " K"]
    position: UInt8[np.ndarray, " N"]
    value: Float32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: Int64[np.ndarray, " R"], **replaced: np.ndarray) -> KeptWindows:
        """These rows, with some columns replaced."""
        length = self.length[rows]
        places = _spans((np.cumsum(self.length) - self.length)[rows], length)
        columns = {name: getattr(self, name)[rows] for name in _ROW_COLUMNS}
        columns |= {"position": self.position[places], "value": self.value[places]}
        return KeptWindows(**(columns | replaced))


_ROW_COLUMNS = tuple(f.name for f in fields(KeptWindows) if f.name not in ("position", "value"))


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


class BackgroundPool:
    """Per split, the windows with the smallest hashes of all, shared by all features."""

    def __init__(self, sizes: SketchSizes) -> None:
        self._kept = sizes.kept_background
        self.threshold = np.full(_N_SPLITS, _ALL_HASHES)
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
        first = np.flatnonzero(_is_first(split, token_hash))
        copies = np.add.reduceat(copies[order], first)
        split, token_hash, occurrence = split[first], token_hash[first], occurrence[order][first]
        rank = _rank_within(split)
        last = rank == self._kept[split] - 1
        self.threshold[split[last]] = token_hash[last]
        kept = rank < self._kept[split]
        self.split, self.token_hash = split[kept], token_hash[kept]
        self.occurrence, self.copies = occurrence[kept], copies[kept]


@dataclass(slots=True)
class _Counts:
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
        n_slots = self.n_features * _N_SPLITS
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
        feature = slot // _N_SPLITS
        starts = np.flatnonzero(_is_first(feature))
        fired = feature[starts]
        self.max_activation[fired] = np.maximum(
            self.max_activation[fired], np.maximum.reduceat(peak, starts)
        )

    def end_chunk(self) -> None:
        self.sum.add(self._chunk_sum)
        self.sum_sq.add(self._chunk_sum_sq)
        self._chunk_sum[:] = 0
        self._chunk_sum_sq[:] = 0


class FeatureSketch:
    """The sketches of all features of one SAE.

    `add` takes one batch after another, `end_chunk` closes a chunk, and `finish` ranks what is
    kept. Batches must come in the same order within a chunk for sums to be reproducible.
    """

    def __init__(self, n_features: int, sizes: SketchSizes, pool: BackgroundPool) -> None:
        n_slots = n_features * _N_SPLITS
        self.counts = _Counts(n_features)
        self._pool = pool
        self._kept_top = np.tile(sizes.kept_top, n_features)
        self._kept_sample = np.tile(sizes.kept_sample, n_features)
        self._least_peak = np.zeros(n_slots, np.float32)
        self._largest_hash = np.full(n_slots, _ALL_HASHES)
        self._kept = _gather([])
        self._pending: list[KeptWindows] = []
        self._n_pending = 0
        self._background: list[KeptWindows] = []
        self._n_background = 0
        self._n_background_pruned = 0

    @property
    def sample_threshold(self) -> Float64[np.ndarray, " S"]:
        """The share of the hash range that each slot's sample covers (1: all are in it)."""
        share: Float64[np.ndarray, " S"] = self._largest_hash.astype(np.float64) / 2.0**64
        return share

    def add(self, firings: Firings, batch: BatchWindows) -> None:
        """Takes in one batch: only what enters a sketch is touched beyond counting."""
        if len(firings) == 0:
            return
        window = batch.window_of_token[firings.token]
        first = np.flatnonzero(_is_first(firings.feature, window))
        length = np.diff(first, append=len(firings))
        window = window[first]
        slot = firings.feature[first].astype(np.int64) * _N_SPLITS + batch.split[window]
        peak = np.maximum.reduceat(firings.value, first)
        self.counts.add(firings, slot, first, length, peak)

        token_hash = batch.token_hash[window]
        in_top = peak >= self._least_peak[slot]
        in_sample = token_hash <= self._largest_hash[slot]

        def gather(rows: np.ndarray) -> KeptWindows:
            places = _spans(first[rows], length[rows])
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
        rows = _gather([self._kept, *self._pending])
        self._pending, self._n_pending = [], 0
        order = _order(rows.slot, rows.token_hash, rows.token_hash, rows.occurrence)
        slot, token_hash = rows.slot[order], rows.token_hash[order]
        is_first = _is_first(slot, token_hash)
        first = np.flatnonzero(is_first)
        group = np.cumsum(is_first) - 1

        # The sample: the first occurrence of each distinct window, with its copies.
        in_sample = rows.in_sample[order]
        copies = np.where(in_sample, rows.copies[order], 0)
        copies = np.add.reduceat(copies, first) if len(first) else copies
        sampled = np.flatnonzero(is_first & in_sample)
        rank = _rank_within(slot[sampled])
        limit = self._kept_sample[slot[sampled]]
        ends = sampled[rank == limit - 1]
        self._largest_hash[slot[ends]] = token_hash[ends]
        stays_in_sample = np.zeros(len(order), np.bool_)
        stays_in_sample[sampled[rank < limit]] = True

        # The top: the best occurrence of each distinct window, by peak.
        best = self._best_of_copies(rows, order, group)
        peak = rows.peak[order[best]]
        occurrence = rows.occurrence[order[best]]
        by_peak = _order(slot[best], _falling(peak), -peak, occurrence)
        best, peak = best[by_peak], peak[by_peak]
        rank = _rank_within(slot[best])
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
        best = copies[_is_first(group[copies])]
        return np.sort(np.concatenate([candidates[~is_copy], best]))

    def _prune_background(self) -> None:
        """Forgets the rows of windows that have left the pool, if they are many."""
        stays = [
            rows.token_hash <= self._pool.threshold[rows.slot % _N_SPLITS]
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
        rows = _gather(self._background)
        in_pool = rows.token_hash <= pool.threshold[rows.slot % _N_SPLITS]
        is_copy = in_pool & np.isin(rows.token_hash, pool.token_hash[pool.copies > 1])
        copies = np.flatnonzero(is_copy)
        order = copies[
            np.lexsort((rows.occurrence[copies], rows.token_hash[copies], rows.slot[copies]))
        ]
        earliest = order[_is_first(rows.slot[order], rows.token_hash[order])]
        stays = np.concatenate([np.flatnonzero(in_pool & ~is_copy), earliest])
        return rows.take(stays[np.argsort(rows.slot[stays], kind="stable")])


def _with_reserve(sizes: Sequence[int]) -> Int64[np.ndarray, " 3"]:
    return np.array([size + max(4, size // 4) if size else 0 for size in sizes], np.int64)


def _gather(parts: list[KeptWindows]) -> KeptWindows:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])

    return KeptWindows(
        slot=column("slot", np.int64),
        token_hash=column("token_hash", np.uint64),
        occurrence=column("occurrence", np.int64),
        peak=column("peak", np.float32),
        copies=column("copies", np.int64),
        in_top=column("in_top", np.bool_),
        in_sample=column("in_sample", np.bool_),
        length=column("length", np.int64),
        position=column("position", np.uint8),
        value=column("value", np.float32),
    )


def _order(
    slot: Int64[np.ndarray, " K"],
    leading: UInt64[np.ndarray, " K"],
    second: np.ndarray,
    third: np.ndarray,
) -> Int64[np.ndarray, " K"]:
    """The order by slot, second and third key.

    One 64-bit key of the slot and the leading bits of the second sorts several times faster
    than three keys do; the few rows that it leaves equal are then sorted by all.

    `leading` are 64-bit numbers that rise with the second key.
    """
    if not len(slot):
        return np.empty(0, np.int64)
    slot_bits = max(1, int(slot.max()).bit_length())
    key = (slot.astype(np.uint64) << np.uint64(64 - slot_bits)) | (leading >> np.uint64(slot_bits))
    order = np.argsort(key)
    key = key[order]
    is_tied = np.zeros(len(key), np.bool_)
    is_tied[1:] = key[1:] == key[:-1]
    is_tied[:-1] |= is_tied[1:]
    tied = np.flatnonzero(is_tied)
    rows = order[tied]
    order[tied] = rows[np.lexsort((third[rows], second[rows], slot[rows]))]
    return order


def _falling(peak: Float32[np.ndarray, " K"]) -> UInt64[np.ndarray, " K"]:
    """64-bit numbers that fall as the (positive) peaks rise."""
    bits = peak.view(np.uint32).astype(np.uint64) << np.uint64(32)
    return ~bits


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


def _spans(
    starts: Int64[np.ndarray, " R"], lengths: Int64[np.ndarray, " R"]
) -> Int64[np.ndarray, " N"]:
    """The places starts[0], starts[0]+1, … of each span, one span after another."""
    ends = np.cumsum(lengths)
    places: Int64[np.ndarray, " N"] = np.arange(ends[-1] if len(ends) else 0)
    places += np.repeat(starts - (ends - lengths), lengths)
    return places
