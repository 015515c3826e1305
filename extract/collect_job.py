"""One collection: the model, the SAEs and the text that a run's parts are made from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..store.errors import CorpusError, SaeError
from ..store.records import CollectedChunk, content_hash
from .collector import CollectedPart, Collector
from .firing_passes import HISTOGRAM_EDGES
from .models import SubjectModel
from .passes import is_released, join_passes, on_disk
from .saes import Sae, load_sae
from .shards import WHOLE, Shard
from .sketches import SketchSizes
from .windows import Chunk, TokenizedChunk, WindowShape, tokenize_chunk
from .workers import threads_per_batch

# Chunks tokenized ahead of the model, in a thread of their own.
_READ_AHEAD = 2


@dataclass(frozen=True, slots=True)
class CollectJob:
    """What decides the content of a collected part, beside its text.

    Attributes:
        saes: those that are in no memory are released (`passes.py`) and read when needed.
        passes: the SAEs' numbers in groups that are collected together; by default all are.
    """

    model: SubjectModel
    saes: list[Sae]
    shape: WindowShape
    sizes: SketchSizes
    max_batch_tokens: int
    passes: tuple[tuple[int, ...], ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What parts must share to be merged."""
        return {
            "model": self.model.name,
            "model_hash": self.model.content_hash,
            "saes": {sae.sae_id: sae.content_hash for sae in self.saes},
            "dtype": str(self.model.network.dtype),
            "max_batch_tokens": self.max_batch_tokens,
            **asdict(self.shape),
            **asdict(self.sizes),
        }

    def manifest(self, chunks: list[dict[str, Any]]) -> dict[str, Any]:
        """What a part of these chunks says of itself; `chunks` are rows of its chunks table."""
        sizes = self.sizes
        return {
            "identity": self.identity,
            "chunks": chunks,
            "saes": [
                {
                    "sae_id": sae.sae_id,
                    "model": self.model.name,
                    "site": sae.site.kind,
                    "layer": sae.site.layer,
                    "width": sae.width,
                    "source": sae.source.source,
                    "content_hash": sae.content_hash,
                }
                for sae in self.saes
            ],
            "sizes": asdict(sizes),
            "kept": {
                "top": sizes.kept_top.tolist(),
                "sample": sizes.kept_sample.tolist(),
                "background": sizes.kept_background.tolist(),
            },
            "histogram_edges": HISTOGRAM_EDGES,
            "device": str(self.model.device),
            # Floating point is the same only on machines of one kind with as many threads.
            "threads": threads_per_batch(self.model.device),
        }

    def part_id(self, chunks: list[dict[str, Any]]) -> str:
        """The name of the part that holds these chunks."""
        numbers = [chunk["chunk"] for chunk in chunks]
        content = content_hash([self.identity, [chunk["chunk_id"] for chunk in chunks]])
        return f"collect-{min(numbers):06d}-{max(numbers):06d}-{content}"

    def collect(
        self,
        chunks: Iterable[TokenizedChunk],
        allow_mismatch: bool = False,
        folder: Path | None = None,
    ) -> Iterator[CollectedPart | int]:
        """Collects the chunks: gives each batch's tokens as it is done, and the part at last.

        Args:
            chunks: tokenized.
            allow_mismatch: go on also where an SAE does not fit what it reads.
            folder: on whose disk temporary files lie; by default the system's.

        Raises:
            FidelityMismatch: an SAE does not fit what it reads, and that is not allowed.
        """
        passes = self.passes or (tuple(range(len(self.saes))),)
        if len(passes) > 1:
            chunks = list(chunks)
        parts = []
        for done, group in enumerate(passes):
            collector = Collector(
                self.model,
                [self.with_weights(number) for number in group],
                self.shape,
                self.sizes,
                self.max_batch_tokens,
                allow_mismatch,
                folder,
            )
            for n_tokens in collector.collect(chunks):
                # Each pass counts for its share of the tokens, in whole numbers.
                yield n_tokens * (done + 1) // len(passes) - n_tokens * done // len(passes)
            parts.append(collector.finish())
            if len(passes) > 1:
                parts[-1] = on_disk(parts[-1], folder)
        yield join_passes(parts, passes) if len(passes) > 1 else parts[0]

    def with_weights(self, number: int) -> Sae:
        """The SAE of this number with its weights, read again if they were released.

        Raises:
            SaeError: its file has changed meanwhile.
        """
        sae = self.saes[number]
        if not is_released(sae):
            return sae
        read = load_sae(sae.source, self.model.config)
        if read.content_hash != sae.content_hash:
            raise SaeError(
                "An SAE's file has changed while it was collected.",
                where=sae.source.source,
                found=f"content {read.content_hash}",
                expected=f"content {sae.content_hash}",
                mend="restore the file, or collect into another folder with --out",
            )
        return read.to(self.model.device)

    def pending_chunks(
        self,
        chunks: Iterable[Chunk],
        collected: Mapping[int, CollectedChunk],
        max_tokens: int | None,
        shard: Shard = WHOLE,
    ) -> Iterator[TokenizedChunk]:
        """The chunks still to collect, tokenized ahead of their use.

        Args:
            chunks: the whole corpus, from its beginning.
            collected: the chunks that are in the store, by number; passed over.
            max_tokens: no chunk is given once those before it, collected ones counted, have
                as many tokens.
            shard: only its chunks are given. The others are tokenized all the same where
                their tokens count, so that all shards end at the same chunk.

        Raises:
            CorpusError: a collected chunk is no longer what it was.
        """
        total = 0
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as executor:
            if max_tokens is None:
                chunks = (chunk for chunk in chunks if shard.owns(chunk.index))
            for waiting in self._ahead(executor, chunks, collected):
                if isinstance(waiting, CollectedChunk):
                    total += waiting.n_tokens
                else:
                    tokenized = waiting.result()
                    total += tokenized.n_tokens
                    if shard.owns(tokenized.index):
                        yield tokenized
                if max_tokens is not None and total >= max_tokens:
                    return

    def _ahead(
        self,
        executor: ThreadPoolExecutor,
        chunks: Iterable[Chunk],
        collected: Mapping[int, CollectedChunk],
    ) -> Iterator[CollectedChunk | Future[TokenizedChunk]]:
        waiting: deque[CollectedChunk | Future[TokenizedChunk]] = deque()
        for chunk in chunks:
            known = collected.get(chunk.index)
            if known is None:
                waiting.append(
                    executor.submit(
                        tokenize_chunk, chunk, self.model.tokenizer, self.model.name, self.shape
                    )
                )
            else:
                require_same_chunk(chunk, known)
                waiting.append(known)
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def changed_sae(found: Iterable[Sae], sae_id: str, weights: str) -> SaeError:
    """The error where none of these SAEs is the one that a run was collected with."""
    return SaeError(
        "An SAE is no longer the one that this run folder was collected with.",
        where="[saes] paths",
        found=", ".join(f"{sae.sae_id} ({sae.content_hash})" for sae in found) or "none",
        expected=f"{sae_id} ({weights})",
        mend="restore its file, or collect into another folder with --out",
    )


def require_same_chunk(chunk: Chunk, known: CollectedChunk) -> None:
    """Makes sure that a chunk is still what was collected.

    Raises:
        CorpusError: it is not.
    """
    if chunk.chunk_id == known.chunk_id:
        return
    raise CorpusError(
        "The corpus has changed since this run folder collected it.",
        where=f"chunk {chunk.index}: {len(chunk.documents)} documents, "
        f"the first beginning {chunk.documents[0].text[:40]!r}",
        found=f"content {chunk.chunk_id}",
        expected=f"content {known.chunk_id}",
        mend="new text may follow what was there, in the same files or in new ones; restore the "
        "text, or collect into another folder with --out",
    )
