"""Collecting on workers: each is given the numbers of some chunks at a time.

Here the corpus is only read and cut, which takes no model; where its tokens are limited they are
counted too, so that all ends at the same chunk as it would in one process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..extract.chat_text import chat_renderer
from ..extract.collect_job import require_same_chunk
from ..extract.corpus import CorpusSource, RowCounts, read_documents
from ..extract.models import load_tokenizer, model_name
from ..extract.sae_sources import SaeSource
from ..extract.windows import CHUNK_DOCUMENTS, cut_chunks, tokenize_chunk
from ..store.collected import Collected
from ..store.run_folder import RunFolder
from .collect_setup import window_shape
from .collected_parts import ChunkNumber, CollectedGroup, CollectWork, collect_group
from .config import Config
from .progress import Progress
from .runners import Runner
from .task_policy import retried_task

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

# Groups given out for each worker: the next is there when one is done.
_AHEAD = 2


@retried_task("collect-part")
def collect_numbers(
    runner: Runner, work: CollectWork, numbers: Sequence[ChunkNumber]
) -> CollectedGroup:
    """Collects the chunks of these numbers into one part."""
    return runner.call(collect_group, work, numbers)


def collect_on_workers(
    runner: Runner,
    config: Config,
    folder: RunFolder,
    source: CorpusSource,
    saes: Sequence[SaeSource],
    before: Collected,
    counts: RowCounts,
    progress: Progress,
    allow_mismatch: bool,
) -> None:
    """Has workers collect the chunks that are not in the database, into parts.

    Args:
        runner: where they are.
        config: of the run.
        folder: of the run.
        source: the corpus.
        saes: that read it.
        before: what is in the database.
        counts: of rows; kept up as they are read.
        progress: where it is shown.
        allow_mismatch: go on also where an SAE does not fit what it reads.
    """
    short = {
        number: chunk
        for number, chunk in before.chunks.items()
        if chunk.n_documents != CHUNK_DOCUMENTS
    }
    work = CollectWork(config, folder.path.absolute(), source, tuple(saes), short, allow_mismatch)
    numbers = pending_numbers(config, source, before, counts)
    limit = config.corpus.max_tokens
    left = max(limit - before.n_tokens, 0) if limit else None
    running: deque[PrefectFuture[CollectedGroup]] = deque()
    with progress.stage("collect", total=left, unit="tokens") as stage:
        while True:
            group = list(islice(numbers, config.collect.chunks_per_part))
            if group:
                running.append(runner.submit(collect_numbers, work=work, numbers=group))
            while running and (not group or len(running) > _AHEAD * runner.n_at_once):
                done = running.popleft().result()
                stage.advance(done.n_tokens)
                if done.remark:
                    progress.say(done.remark)
            if not group:
                return


def pending_numbers(
    config: Config, source: CorpusSource, before: Collected, counts: RowCounts
) -> Iterator[ChunkNumber]:
    """The chunks still to collect, as one process would come to them, without a model."""
    limit = config.corpus.max_tokens
    tokenizer: Any = None
    if limit is not None or source.chat:
        tokenizer = load_tokenizer(config.model.name)
    render = chat_renderer(tokenizer, config.model.name) if source.chat else None
    documents = read_documents(source, counts, render)
    total = 0
    for chunk in cut_chunks(documents, before.chunks):
        known = before.chunks.get(chunk.index)
        if known is not None:
            require_same_chunk(chunk, known)
            total += known.n_tokens
        elif limit is None:
            yield ChunkNumber(chunk.index, chunk.chunk_id)
        else:
            name = model_name(config.model.name)
            total += tokenize_chunk(chunk, tokenizer, name, window_shape(config)).n_tokens
            yield ChunkNumber(chunk.index, chunk.chunk_id)
        if limit is not None and total >= limit:
            return
