"""Collecting chunks into a part: the work of one task, in whatever process it is.

A worker is told the numbers of its chunks and reads the corpus itself; it keeps the place that it
has come to, because the groups that it is given follow each other. Nothing here knows Prefect or
the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from ..extract.collect_job import CollectJob, require_same_chunk
from ..extract.collector import CollectedPart
from ..extract.corpus import CorpusSource, RowCounts
from ..extract.sae_sources import SaeSource
from ..extract.windows import Chunk, TokenizedChunk, cut_chunks
from ..store.errors import CorpusError
from ..store.parts import write_part
from ..store.records import CollectedChunk
from ..store.run_folder import RunFolder
from .collect_setup import corpus_documents, load_collect_job
from .config import Config
from .progress import Progress
from .worker_state import Place, opened


def write_collected(
    job: CollectJob,
    chunks: Iterable[TokenizedChunk],
    folder: RunFolder,
    allow_mismatch: bool,
    advance: Callable[[int], None],
) -> CollectedGroup:
    """Collects chunks into one part.

    Args:
        job: what with.
        chunks: at least one.
        folder: the run.
        allow_mismatch: go on also where an SAE does not fit what it reads.
        advance: hears of tokens.
    """
    for result in job.collect(chunks, allow_mismatch, folder.parts):
        if isinstance(result, CollectedPart):
            rows: list[dict[str, Any]] = result.tables["chunks"].to_pylist()
            manifest = {**job.manifest(rows), "halved_from_tokens": result.too_large}
            name = job.part_id(rows)
            write_part(folder.parts, name, "collect", result.tables, manifest)
            n_tokens = sum(row["n_tokens"] for row in rows)
            return CollectedGroup(name, n_tokens, result.too_large)
        advance(result)
    raise AssertionError("a collection ends with its part")


@dataclass(frozen=True, slots=True)
class CollectedGroup:
    """What came of some chunks.

    Attributes:
        part_id: the part that they are in.
        n_tokens: of them.
        too_large: batches of so many tokens the device had no room for; None where it had.
    """

    part_id: str
    n_tokens: int
    too_large: int | None

    @property
    def remark(self) -> str | None:
        """What a person should know of it."""
        if not self.too_large:
            return None
        return (
            f"collect: the device had no room for batches of {self.too_large:,} tokens, "
            "which were computed in halves; set a smaller [model] max_batch_tokens"
        )


@dataclass(frozen=True, slots=True)
class ChunkNumber:
    """A chunk that is to be collected: its number, and what it must be."""

    index: int
    chunk_id: str


@dataclass(frozen=True, slots=True)
class CollectWork:
    """What all tasks that collect do.

    Attributes:
        config: of the run.
        folder: the run's, absolute.
        source: the corpus.
        saes: that read it.
        short: the chunks collected before that are cut short, by number.
        allow_mismatch: go on also where an SAE does not fit what it reads.
    """

    config: Config
    folder: Path
    source: CorpusSource
    saes: tuple[SaeSource, ...]
    short: Mapping[int, CollectedChunk]
    allow_mismatch: bool
    place: ClassVar[Place] = "model"

    @contextmanager
    def open(self) -> Iterator[Collecting]:
        """Loads the model and the SAEs."""
        job = load_collect_job(
            self.config, list(self.saes), RunFolder(self.folder), Progress(StringIO())
        )
        yield Collecting(self, job)


@dataclass(slots=True)
class Collecting:
    """A model that is loaded, and how far it has come in the corpus; one task at a time uses it."""

    work: CollectWork
    job: CollectJob
    in_use: Lock = field(default_factory=Lock)
    _chunks: Iterator[Chunk] | None = None
    _next: int = 0

    def chunks(self, numbers: Sequence[ChunkNumber]) -> Iterator[Chunk]:
        """The chunks of these rising numbers.

        Raises:
            CorpusError: one is not what it was when it was counted, or no longer there.
        """
        for number in numbers:
            yield self._find(number)

    def _find(self, number: ChunkNumber) -> Chunk:
        if self._chunks is None or self._next > number.index:
            documents = corpus_documents(self.work.source, RowCounts(), self.job.model)
            self._chunks, self._next = cut_chunks(documents, self.work.short), 0
        try:
            for chunk in self._chunks:
                self._next = chunk.index + 1
                if chunk.index == number.index:
                    found = CollectedChunk(number.chunk_id, len(chunk.documents), 0)
                    require_same_chunk(chunk, found)
                    return chunk
        except BaseException:
            self._chunks = None
            raise
        self._chunks = None
        raise CorpusError(
            "The corpus has become shorter while it was collected.",
            where=str(self.work.source),
            found=f"{self._next:,} chunks",
            expected=f"chunk {number.index}",
            mend="restore the text, on every machine",
        )


def collect_group(work: CollectWork, numbers: Sequence[ChunkNumber]) -> CollectedGroup:
    """Collects the chunks of these numbers into one part."""
    with opened(work) as collecting, collecting.in_use:
        job = collecting.job
        tokenized = job.pending_chunks(collecting.chunks(numbers), {}, None)
        return write_collected(
            job, tokenized, RunFolder(work.folder), work.allow_mismatch, lambda n: None
        )
