"""What was collected as Arrow tables, in the form of a part's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ..store.splits import SPLITS
from .firing_passes import FeatureCounts
from .kept_windows import KeptWindows
from .windows import TokenizedChunk, occurrence_start


@dataclass(slots=True)
class WindowTexts:
    """The text of windows that some sketch may still keep."""

    blocks: list[pa.Table] = field(default_factory=list)
    n_live: int = 0

    def add(self, chunk: TokenizedChunk) -> None:
        """Takes in the windows of a chunk."""
        if len(chunk.occurrence):
            self.blocks.append(_describe_windows(chunk))

    def prune(self, occurrences: Callable[[], np.ndarray]) -> None:
        """Forgets windows that nothing keeps, when there are more by some than at the last look."""
        if sum(block.num_rows for block in self.blocks) > 1.25 * self.n_live + 20_000:
            self.keep(occurrences())

    def keep(self, occurrences: np.ndarray) -> pa.Table:
        """The windows that stand at these places; the others are forgotten."""
        table = pa.concat_tables(self.blocks).combine_chunks()
        table = table.filter(pa.array(np.isin(table["occurrence"].to_numpy(), occurrences)))
        self.blocks, self.n_live = [table], table.num_rows
        return table


def _lists(values: np.ndarray, length: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def _describe_windows(chunk: TokenizedChunk) -> pa.Table:
    ends = chunk.window_start + chunk.window_length
    prefix_start = chunk.window_start - chunk.prefix_length
    doc_ids = pa.DictionaryArray.from_arrays(
        chunk.window_document.astype(np.int32), pa.array(chunk.doc_ids)
    )
    return pa.table(
        {
            "occurrence": chunk.occurrence,
            "token_hash": chunk.token_hash,
            "window_id": chunk.window_id,
            "doc_id": doc_ids.cast(pa.string()),
            "split": chunk.window_split.astype(np.uint8),
            "start": occurrence_start(chunk.occurrence),
            "token_ids": _slices(chunk.tokens, chunk.window_start, ends),
            "prefix_token_ids": _slices(chunk.tokens, prefix_start, chunk.window_start),
        }
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
