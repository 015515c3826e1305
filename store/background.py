"""The activations of all features on the windows of the background pool.

A part holds them by window, one row each: a window enters and leaves the pool as a whole, and
merging parts is choosing windows. The database holds them by feature, because that is how they
are read.

Of copies, windows with the same token ids, a feature keeps the earliest occurrence in which it
fires: what comes before a window differs between copies, and with it the activations. So a
window has one row for each occurrence that some feature keeps, and no feature is in two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64, UInt8, UInt16


@dataclass(frozen=True, slots=True)
class WindowFirings:
    """What fires in one occurrence of a window, feature by feature.

    Attributes:
        occurrence: where it stands in the corpus, as an ordered number.
        feature: the features, rising.
        length: how many of `position` and `activation` are each feature's.
    """

    occurrence: int
    feature: Int32[np.ndarray, " G"]
    length: UInt16[np.ndarray, " G"]
    position: UInt8[np.ndarray, " N"]
    activation: Float32[np.ndarray, " N"]

    def where(self, keep: np.ndarray) -> WindowFirings:
        """Only the features at which the mask is true."""
        firings = np.repeat(keep, self.length)
        return WindowFirings(
            self.occurrence,
            self.feature[keep],
            self.length[keep],
            self.position[firings],
            self.activation[firings],
        )


def fold_copies(copies: Iterable[WindowFirings]) -> list[WindowFirings]:
    """Each feature in the earliest occurrence in which it fires; occurrences left empty are gone.

    Folding what was folded before with more gives what folding all at once gives.
    """
    folded: list[WindowFirings] = []
    seen = np.empty(0, np.int32)
    for copy in sorted(copies, key=lambda each: each.occurrence):
        fresh = copy.where(~np.isin(copy.feature, seen))
        if len(fresh.feature):
            folded.append(fresh)
            seen = np.concatenate([seen, fresh.feature])
    return folded


def background_table(
    windows: Iterable[tuple[int, int, WindowFirings]],
) -> pa.Table:
    """Rows of a part: split's number, token hash and firings of each window, in this order."""
    rows = list(windows)
    firings = [each for _, _, each in rows]

    def lists(arrays: list[np.ndarray], dtype: type) -> pa.LargeListArray:
        offsets = np.cumsum([0, *map(len, arrays)])
        return pa.LargeListArray.from_arrays(offsets, np.concatenate([np.empty(0, dtype), *arrays]))

    return pa.table(
        {
            "split": np.array([split for split, _, _ in rows], np.uint8),
            "token_hash": np.array([token_hash for _, token_hash, _ in rows], np.uint64),
            "occurrence": np.array([each.occurrence for each in firings], np.int64),
            "features": lists([each.feature for each in firings], np.int32),
            "lengths": lists([each.length for each in firings], np.uint16),
            "positions": lists([each.position for each in firings], np.uint8),
            "activations": lists([each.activation for each in firings], np.float32),
        }
    )


def fold_background(table: pa.Table) -> pa.Table:
    """Rows of parts in order of split and token hash, with the copies of each window folded."""
    columns = [table[name].to_numpy() for name in ("split", "token_hash", "occurrence")]
    lists = [
        [row.values.to_numpy(zero_copy_only=False) for row in table[name]]
        for name in ("features", "lengths", "positions", "activations")
    ]
    rows = [
        ((int(split), int(token_hash)), WindowFirings(int(occurrence), *firings))
        for split, token_hash, occurrence, *firings in zip(*columns, *lists, strict=True)
    ]
    return background_table(
        (*window, each)
        for window, copies in groupby(rows, key=itemgetter(0))
        for each in fold_copies(firings for _, firings in copies)
    )


def by_feature(table: pa.Table) -> pa.Table:
    """The rows of the database, by feature, from rows by window.

    Args:
        table: window_id, and the lists of `background_table`.

    Returns:
        feature, window_id, positions and activations; a feature's windows in the table's order.
    """
    features, of_window = _flat(table["features"])
    length = _flat(table["lengths"])[0]
    order = _argsort(features)
    starts = (np.cumsum(length, dtype=np.int64) - length)[order]
    length = length[order].astype(np.int64)
    ends = np.cumsum(length)
    places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - length), length)
    offsets = np.concatenate([[0], ends])
    return pa.table(
        {
            "feature": features[order],
            "window_id": table["window_id"].to_numpy()[of_window[order]],
            "positions": _lists(offsets, _flat(table["positions"])[0][places]),
            "activations": _lists(offsets, _flat(table["activations"])[0][places]),
        }
    )


def _lists(offsets: Int64[np.ndarray, " R"], values: np.ndarray) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(offsets, values)


def _argsort(features: Int32[np.ndarray, " K"]) -> Int64[np.ndarray, " K"]:
    # NumPy sorts 16-bit numbers by radix, in a small part of the time of wider ones.
    low, high = features.astype(np.uint16), (features >> 16).astype(np.uint16)
    order: Int64[np.ndarray, " K"] = np.argsort(low, kind="stable")
    if high.any():
        order = order[np.argsort(high[order], kind="stable")]
    return order


def _flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, Int64[np.ndarray, " N"]]:
    """The lists' values one after another, and each one's list."""
    array = lists.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    length = array.value_lengths().to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False), np.repeat(np.arange(len(length)), length)
