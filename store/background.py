"""The activations of all features on the windows of the background pool.

A part holds them by window, one row each: a window enters and leaves the pool as a whole, and
merging parts is choosing windows. The database holds them by feature, because that is how they
are read.

Of copies, windows with the same token ids, a feature keeps the earliest occurrence in which it
fires: what comes before a window differs between copies, and with it the activations. So a
window has one row for each occurrence that some feature keeps, and no feature is in two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64, UInt8, UInt16

# The arrays of a row, and their types.
FIRING_ARRAYS: dict[str, type] = {
    "feature": np.int32,
    "length": np.uint16,
    "position": np.uint8,
    "activation": np.float32,
}
_ROWS = pa.schema(
    {
        "split": pa.uint8(),
        "token_hash": pa.uint64(),
        "occurrence": pa.int64(),
        **{name: pa.large_binary() for name in FIRING_ARRAYS},
    }
)
# Firings written, and read, at once.
_BYTES_AT_ONCE = 16 << 20


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


def background_rows(windows: Iterable[tuple[int, int, WindowFirings]]) -> pa.RecordBatchReader:
    """Rows of a part: split's number, token hash and firings of each window, in this order.

    Read as it is written, some windows at a time. The arrays are kept as bytes: Parquet would
    otherwise encode for every single number which list it belongs to.
    """
    return pa.RecordBatchReader.from_batches(_ROWS, _batches(windows))


def _batches(windows: Iterable[tuple[int, int, WindowFirings]]) -> Iterator[pa.RecordBatch]:
    rows: list[tuple[int, int, WindowFirings]] = []
    n_bytes = 0
    for split, token_hash, firings in windows:
        rows.append((split, token_hash, firings))
        n_bytes += sum(getattr(firings, name).nbytes for name in FIRING_ARRAYS)
        if n_bytes >= _BYTES_AT_ONCE:
            yield _batch_of(rows)
            rows, n_bytes = [], 0
    yield _batch_of(rows)


def _batch_of(rows: list[tuple[int, int, WindowFirings]]) -> pa.RecordBatch:
    firings = [each for _, _, each in rows]
    columns = [
        pa.array([split for split, _, _ in rows], pa.uint8()),
        pa.array([token_hash for _, token_hash, _ in rows], pa.uint64()),
        pa.array([each.occurrence for each in firings], pa.int64()),
        *(_as_bytes([getattr(each, name) for each in firings]) for name in FIRING_ARRAYS),
    ]
    return pa.record_batch(columns, schema=_ROWS)


def fold_background(table: pa.Table) -> pa.Table:
    """Rows of parts in order of split and token hash, with the copies of each window folded."""
    numbers = [table[name].to_pylist() for name in ("split", "token_hash", "occurrence")]
    arrays: list[list[np.ndarray]] = [
        [np.frombuffer(row, dtype) for row in table[name].to_pylist()]
        for name, dtype in FIRING_ARRAYS.items()
    ]
    rows = [
        ((split, token_hash), WindowFirings(occurrence, *firings))
        for split, token_hash, occurrence, *firings in zip(*numbers, *arrays, strict=True)
    ]
    return background_rows(
        (*window, each)
        for window, copies in groupby(rows, key=itemgetter(0))
        for each in fold_copies(firings for _, firings in copies)
    ).read_all()


def join_arrays(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, Int64[np.ndarray, " W"]]:
    """One of the FIRING_ARRAYS of all rows, one after another, and where each row's begins.

    The second has one number more than rows: where the last ends.
    """
    whole = pa.concat_arrays(
        [pa.array([], pa.large_binary()), *column.cast(pa.large_binary()).chunks]
    )
    _, offsets, content = whole.buffers()
    size = np.dtype(FIRING_ARRAYS[name]).itemsize
    begins = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    joined = np.frombuffer(content or b"", np.uint8)[begins[0] : begins[-1]]
    return joined.view(FIRING_ARRAYS[name]), (begins - begins[0]) // size


def _as_bytes(arrays: list[np.ndarray]) -> pa.LargeBinaryArray:
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=np.int64)
    content = np.concatenate([np.empty(0, np.uint8), *(array.view(np.uint8) for array in arrays)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(arrays), buffers)
