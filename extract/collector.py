"""From chunks of text to a part: one pass of the model feeds every SAE's sketches.

`Collector.finish` gives Arrow tables, which the store writes; on disk lies meanwhile only what
fires in the background pool, in files without a name.
"""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64

from ..store.background import background_rows
from ..store.splits import SPLITS
from .activations import Firings, find_firings
from .background_pool import BackgroundPool
from .device_memory import out_of_memory
from .fidelity import FidelitySums, FidelityWatch
from .firing_passes import BatchWindows
from .models import SubjectModel, read_vectors
from .part_tables import WindowTexts, contexts_table, counts_table, features_table
from .saes import Sae
from .sites import Site
from .sketches import FeatureSketch, SketchSizes
from .windows import (
    SequenceBatch,
    TokenizedChunk,
    WindowShape,
    batch_sequences,
)
from .workers import batch_workers, n_at_once


@dataclass(frozen=True, slots=True)
class _BatchSums:
    """What a batch leaves beside the sketches: by split and by SAE."""

    n_tokens: int
    n_special: Int64[np.ndarray, " S"]
    n_active: list[int]
    fidelity: list[FidelitySums]


@dataclass(slots=True)
class _OpenChunk:
    """A chunk some of whose batches are not done."""

    chunk: TokenizedChunk
    batches: list[SequenceBatch]
    n_done: int = 0
    sums: list[_BatchSums] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CollectedPart:
    """What was collected from some chunks: tables by name, as the store's parts hold them.

    The background comes as readers, each to be read once.

    Attributes:
        n_tokens: of text.
        too_large: padded tokens of the smallest batch for which the device had no room, and
            which was computed in halves; None where all batches fitted.
    """

    tables: dict[str, pa.Table | pa.RecordBatchReader]
    n_tokens: int
    too_large: int | None = None


class Collector:
    """Gathers the sketches of any number of SAEs from chunks of text, in one pass.

    Args:
        model: cut after the deepest site.
        saes: on the model's device.
        shape: how documents are cut into windows.
        sizes: how many windows are kept for each feature.
        max_batch_tokens: padded tokens that the model sees at once.
        allow_mismatch: go on also where an SAE does not fit what it reads.
        folder: on whose disk the background lies meanwhile; by default the system's folder
            for temporary files.
    """

    def __init__(
        self,
        model: SubjectModel,
        saes: list[Sae],
        shape: WindowShape,
        sizes: SketchSizes,
        max_batch_tokens: int,
        allow_mismatch: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._model, self._saes, self._shape = model, saes, shape
        self._max_batch_tokens = max_batch_tokens
        self._sites: list[Site] = sorted({site for sae in saes for site in (sae.site, sae.target)})
        self._pool = BackgroundPool(sizes.kept_background)
        self._sketches = [FeatureSketch(sae.width, sizes, self._pool, folder) for sae in saes]
        self._texts = WindowTexts(folder)
        # Padded tokens for which the device had no room; unknown before it happens.
        self._too_large = sys.maxsize
        self._watch = None if allow_mismatch else FidelityWatch(saes)
        self._totals = np.zeros((len(SPLITS), 3), np.int64)
        self._chunk_rows: list[dict[str, Any]] = []
        self._fidelity_rows: list[dict[str, Any]] = []
        self._bos = model.tokenizer.bos_token_id
        self._special = frozenset(model.tokenizer.all_special_ids)
        self._pad = model.tokenizer.pad_token_id or 0

    def collect(self, chunks: Iterable[TokenizedChunk]) -> Iterator[int]:
        """Takes in chunks; gives the number of tokens of each batch when it is done.

        Batches are worked on side by side. What they leave does not depend on their order,
        but for sums of floats, which are added up in the order of the batches.

        Raises:
            FidelityMismatch: an SAE does not fit what it reads.
        """
        waiting: deque[tuple[_OpenChunk, int, Future[list[_BatchSums]]]] = deque()
        workers = batch_workers(self._model.device, self._model.reader.cancelled)
        with workers as (executor, n_workers):
            for opened in map(self._open, chunks):
                for batch in opened.batches:
                    windows = self._admit(opened.chunk, batch)
                    future = executor.submit(self._add_batch, batch, windows)
                    waiting.append((opened, len(batch.position), future))
                    # For each batch that is worked on another lies ready.
                    if len(waiting) >= 2 * n_workers:
                        yield self._settle(*waiting.popleft())
            while waiting:
                yield self._settle(*waiting.popleft())

    def finish(self) -> CollectedPart:
        """Ranks what is kept and gives it as tables; the sketches are then spent."""
        tables: dict[str, pa.Table | pa.RecordBatchReader] = {}
        with ThreadPoolExecutor(n_at_once(self._model.device)) as executor:
            contexts = list(executor.map(FeatureSketch.finish, self._sketches))
        tables["windows"] = self._texts.keep(self._occurrences())
        for number, sketch in enumerate(self._sketches):
            tables[f"contexts-{number}"] = contexts_table(contexts[number])
            tables[f"background-{number}"] = background_rows(sketch.background.drain())
            tables[f"counts-{number}"] = counts_table(sketch.counts)
            tables[f"features-{number}"] = features_table(sketch.counts)
        pool = self._pool
        tables["pool"] = pa.table(
            {
                "split": pool.split.astype(np.uint8),
                "token_hash": pool.token_hash,
                "occurrence": pool.occurrence,
                "copies": pool.copies,
            }
        )
        tables["totals"] = pa.table(
            {
                "split": np.arange(len(SPLITS), dtype=np.uint8),
                "n_documents": self._totals[:, 0],
                "n_windows": self._totals[:, 1],
                "n_tokens": self._totals[:, 2],
            }
        )
        self._chunk_rows.sort(key=itemgetter("chunk"))
        tables["chunks"] = pa.Table.from_pylist(self._chunk_rows, _CHUNKS)
        tables["fidelity"] = pa.Table.from_pylist(self._fidelity_rows, _FIDELITY)
        smaller = None if self._too_large == sys.maxsize else self._too_large
        return CollectedPart(tables, int(self._totals[:, 2].sum()), smaller)

    def _open(self, chunk: TokenizedChunk) -> _OpenChunk:
        batches = batch_sequences(
            chunk, self._bos, self._pad, self._special, self._max_batch_tokens
        )
        opened = _OpenChunk(chunk, list(batches))
        if not opened.batches:
            self._close(opened)
        return opened

    def _admit(self, chunk: TokenizedChunk, batch: SequenceBatch) -> BatchWindows:
        split = chunk.window_split[batch.windows]
        token_hash = chunk.token_hash[batch.windows]
        occurrence = chunk.occurrence[batch.windows]
        return BatchWindows(
            split=split,
            token_hash=token_hash,
            occurrence=occurrence,
            in_pool=self._pool.admit(split, token_hash, occurrence),
            window_of_token=batch.window_of_token,
            position=batch.position,
        )

    def _add_batch(self, batch: SequenceBatch, windows: BatchWindows) -> list[_BatchSums]:
        """Takes in one batch, in halves where the device has no room for it; beside others."""
        if batch.input_ids.size < self._too_large:
            # Everything is computed before anything is counted, so that it can be done again.
            try:
                found = self._find_firings(batch)
            except torch.OutOfMemoryError as error:
                self._give_up_at(batch, error)
            else:
                return [self._count(batch, windows, found)]
        half = len(batch.input_ids) // 2
        return [
            sums
            for part, of_windows in (batch.rows(0, half), batch.rows(half, len(batch.input_ids)))
            for sums in self._add_batch(part, windows.of(part, of_windows))
        ]

    def _give_up_at(self, batch: SequenceBatch, error: torch.OutOfMemoryError) -> None:
        """From now on batches of this size are halved before they are tried."""
        n_tokens = batch.input_ids.size
        if len(batch.input_ids) == 1:
            raise out_of_memory(self._model, self._saes, n_tokens) from error
        self._too_large = min(self._too_large, n_tokens)
        torch.cuda.empty_cache()

    def _find_firings(self, batch: SequenceBatch) -> list[tuple[Firings, FidelitySums]]:
        vectors = read_vectors(self._model, batch, self._sites)
        found = []
        with torch.inference_mode():
            for sae in self._saes:
                x, target = vectors[sae.site], vectors[sae.target]
                firings = find_firings(sae, x)
                found.append((firings, FidelitySums.measure(sae, x, target, firings)))
        return found

    def _count(
        self,
        batch: SequenceBatch,
        windows: BatchWindows,
        found: list[tuple[Firings, FidelitySums]],
    ) -> _BatchSums:
        n_active = []
        for (firings, _), sketch in zip(found, self._sketches, strict=True):
            if batch.is_special is not None:
                firings = firings.where(~batch.is_special[firings.token])
            sketch.add(firings, windows)
            n_active.append(len(firings))
        n_special = np.zeros(len(SPLITS), np.int64)
        if batch.is_special is not None:
            special = windows.split[batch.window_of_token[batch.is_special]]
            n_special = np.bincount(special, minlength=len(SPLITS))
        return _BatchSums(
            len(batch.position), n_special, n_active, [fidelity for _, fidelity in found]
        )

    def _settle(self, opened: _OpenChunk, n_tokens: int, future: Future[list[_BatchSums]]) -> int:
        opened.n_done += 1
        opened.sums += future.result()
        if self._watch is not None:
            for sums in future.result():
                self._watch.add(sums.n_tokens, sums.n_active, sums.fidelity)
        if opened.n_done == len(opened.batches):
            self._close(opened)
        return n_tokens

    def _close(self, opened: _OpenChunk) -> None:
        """Counts a chunk whose batches are all done."""
        chunk, done = opened.chunk, opened.sums
        n_special = sum((each.n_special for each in done), np.zeros(len(SPLITS), np.int64))
        self._texts.add(chunk)
        self._texts.prune(self._occurrences)
        n_tokens = chunk.n_tokens - int(n_special.sum())
        document_split = np.zeros(len(chunk.doc_ids), np.int64)
        document_split[chunk.window_document] = chunk.window_split
        has_window = np.zeros(len(chunk.doc_ids), np.bool_)
        has_window[chunk.window_document] = True
        self._totals[:, 0] += np.bincount(document_split[has_window], minlength=len(SPLITS))
        self._totals[:, 1] += np.bincount(chunk.window_split, minlength=len(SPLITS))
        lengths = np.bincount(chunk.window_split, chunk.window_length, len(SPLITS))
        self._totals[:, 2] += lengths.astype(np.int64) - n_special
        self._chunk_rows.append(
            {
                "chunk": chunk.index,
                "chunk_id": chunk.chunk_id,
                "n_documents": len(chunk.doc_ids),
                "n_windows": len(chunk.occurrence),
                "n_tokens": n_tokens,
            }
        )
        for number, of_batches in enumerate(zip(*(each.fidelity for each in done), strict=True)):
            sums = reduce(operator.add, of_batches)
            self._fidelity_rows.append(
                {
                    "sae": number,
                    "chunk": chunk.index,
                    "n_tokens": sums.n_tokens,
                    "sum_x": sums.sum_x,
                    "sum_x_sq": sums.sum_x_sq,
                    "sum_error_sq": sums.sum_error_sq,
                }
            )

    def _occurrences(self) -> np.ndarray:
        kept = [rows for sketch in self._sketches for rows in sketch.occurrences]
        return np.unique(np.concatenate([self._pool.occurrence, *kept]))


_CHUNKS = pa.schema(
    {
        "chunk": pa.int64(),
        "chunk_id": pa.string(),
        "n_documents": pa.int64(),
        "n_windows": pa.int64(),
        "n_tokens": pa.int64(),
    }
)
_FIDELITY = pa.schema(
    {
        "sae": pa.int32(),
        "chunk": pa.int64(),
        "n_tokens": pa.int64(),
        "sum_x": pa.list_(pa.float64()),
        "sum_x_sq": pa.float64(),
        "sum_error_sq": pa.float64(),
    }
)
