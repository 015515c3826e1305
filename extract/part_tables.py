"""What was collected as Arrow tables, in the form of a part's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import pyarrow as pa

from ..store.splits import SPLITS
from .firing_passes import FeatureCounts
from .kept_windows import KeptWindows
from .windows import TokenizedChunk, occurrence_start

_WINDOWS = pa.schema(
    {
        "occurrence": pa.int64(),
        "token_hash": pa.uint64(),
        "window_id": pa.uint64(),
        "doc_id": pa.string(),
        "split": pa.uint8(),
        "start": pa.int64(),
        "token_ids": pa.list_(pa.int32()),
        "prefix_token_ids": pa.list_(pa.int32()),
    }
)
# How many windows that nothing keeps may lie about.
_SPARE_WINDOWS = 20_000
# Rows of windows written, and read, at once.
_WINDOWS_AT_ONCE = 1 << 14


class WindowTexts:
    """The text of windows that some sketch may still keep, on disk.

    Args:
        folder: on whose disk; by default the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._n_windows = self._n_live = 0
        self._open()

    def add(self, chunk: TokenizedChunk) -> None:
        """Takes in the windows of a chunk."""
        self._write(_describe_windows(chunk))

    def prune(self, occurrences: Callable[[], np.ndarray]) -> None:
        """Forgets windows that nothing keeps, when there are more by some than at the last look."""
        if self._n_windows > 1.25 * self._n_live + _SPARE_WINDOWS:
            before = self._finished()
            self._n_windows = 0
            self._open()
            for batch in _read(before, occurrences()):
                self._write(batch)
            self._n_live = self._n_windows

    def keep(self, occurrences: np.ndarray) -> pa.RecordBatchReader:
        """The windows that stand at these places, as they are read; the others are forgotten."""
        return pa.RecordBatchReader.from_batches(_WINDOWS, _read(self._finished(), occurrences))

    def _open(self) -> None:
        # Open for as long as this object lives.
        self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115
        self._writer = pa.ipc.new_stream(self._file, _WINDOWS)

    def _write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self._n_windows += batch.num_rows

    def _finished(self) -> IO[bytes]:
        self._writer.close()
        self._file.seek(0)
        return self._file


def _read(file: IO[bytes], occurrences: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Batches of some thousand windows, those that stand at these places."""
    held: list[pa.RecordBatch] = []
    for batch in pa.ipc.open_stream(file):
        held.append(batch.filter(pa.array(np.isin(batch["occurrence"], occurrences))))
        if sum(each.num_rows for each in held) > _WINDOWS_AT_ONCE:
            yield pa.concat_batches(held)
            held = []
    yield from [pa.concat_batches(held)] if held else []
    file.close()


def _lists(values: np.ndarray, length: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def _describe_windows(chunk: TokenizedChunk) -> pa.RecordBatch:
    ends = chunk.window_start + chunk.window_length
    prefix_start = chunk.window_start - chunk.prefix_length
    doc_ids = pa.DictionaryArray.from_arrays(
        chunk.window_document.astype(np.int32), pa.array(chunk.doc_ids)
    )
    return pa.record_batch(
        {
            "occurrence": chunk.occurrence,
            "token_hash": chunk.token_hash,
            "window_id": chunk.window_id,
            "doc_id": doc_ids.cast(pa.string()),
            "split": chunk.window_split.astype(np.uint8),
            "start": occurrence_start(chunk.occurrence),
            "token_ids": _slices(chunk.tokens, chunk.window_start, ends),
            "prefix_token_ids": _slices(chunk.tokens, prefix_start, chunk.window_start),
        },
        _WINDOWS,
    )


def _slices(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pa.ListArray:
    pieces = [tokens[a:b] for a, b in zip(starts, ends, strict=True)]
    return _lists(np.concatenate(pieces) if pieces else tokens[:0], ends - starts)


def _slot_columns(slot: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "feature": (slot // len(SPLITS)).astype(np.int32),
        "split": (slot % len(SPLITS)).astype(np.uint8),
    }


def contexts_table(rows: KeptWindows) -> pa.Table:
    """The windows kept for each feature and split."""
    return pa.table(
        {
            **_slot_columns(rows.slot),
            "token_hash": rows.token_hash,
            "occurrence": rows.occurrence,
            "peak": rows.peak,
            "copies": rows.copies,
            "in_top": rows.in_top,
            "in_sample": rows.in_sample,
            "positions": _lists(rows.position, rows.length),
            "activations": _lists(rows.value, rows.length),
        }
    )


def counts_table(counts: FeatureCounts) -> pa.Table:
    """What was counted of each feature and split."""
    slot = np.flatnonzero(counts.n_active)
    return pa.table(
        {
            **_slot_columns(slot),
            "n_active_windows": counts.n_active_windows[slot],
            "n_active": counts.n_active[slot],
            "sum_whole": counts.sums[slot, 0],
            "sum_fraction": counts.sums[slot, 1],
            "sum_sq_whole": counts.sums_sq[slot, 0],
            "sum_sq_fraction": counts.sums_sq[slot, 1],
        }
    )


def features_table(counts: FeatureCounts) -> pa.Table:
    """What was counted of each feature over all splits."""
    fired = np.flatnonzero(counts.max_activation > 0)
    histogram = counts.histogram[fired]
    return pa.table(
        {
            "feature": fired.astype(np.int32),
            "max_activation": counts.max_activation[fired],
            "histogram": _lists(histogram.reshape(-1), np.full(len(fired), histogram.shape[1])),
        }
    )
