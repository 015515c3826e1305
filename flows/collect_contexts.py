"""The flow that reads the corpus through the model and keeps what each feature responds to."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa
from prefect import flow

from ..extract.collect_job import CollectJob
from ..extract.corpus import Document, RowCounts, check_bad_share, corpus_source_state
from ..extract.models import load_token_pieces, load_tokenizer
from ..extract.shards import Shard
from ..extract.windows import TokenizedChunk, cut_chunks
from ..store.absorb import absorb_collected
from ..store.collected import Collected, mark_complete, read_collected
from ..store.database import open_work, publish
from ..store.parts import list_parts, read_part, remove_unfinished
from ..store.records import CollectedChunk
from ..store.remote_parts import RemoteParts
from ..store.run_folder import RunFolder, clear_disk_errors
from .batches import as_is
from .chunk_stream import ChunkGroup, ChunkStream
from .collect_on_workers import collect_on_workers
from .collect_setup import corpus_documents, load_collect_job, sae_sources, settled_corpus
from .collected_parts import write_collected
from .config import Config
from .describe_features import describe_features
from .measure_losses import measure_losses
from .parts_elsewhere import (
    bring_parts,
    checked_remote_parts,
    chunks_elsewhere,
    leave_notes,
    move_part,
    put_left_parts,
)
from .progress import Progress, Stage
from .recorded_runs import recorded_run
from .reports import StageReport
from .runners import task_runner
from .task_policy import noting_retries, patiently, retried_task, retry_notes


@flow(name="collect-contexts", validate_parameters=False)
def collect_contexts(
    config: Config, folder: RunFolder, progress: Progress, allow_mismatch: bool = False
) -> StageReport:
    """Collects what is missing of the corpus and publishes the tables.

    Every part of some chunks is a task; one at a time, because the model uses the whole
    machine. A part that is finished stays finished, whatever happens to the next.

    Args:
        config: of the run.
        folder: of the run.
        progress: where it is shown.
        allow_mismatch: go on also where an SAE does not fit what it reads.
    """
    started = time.monotonic()
    with (
        recorded_run("collect", config, folder) as run,
        clear_disk_errors(folder.path),
        task_runner(config.runner, folder) as runner,
        noting_retries() as retried,
    ):
        source, saes = settled_corpus(config, folder), sae_sources(config)
        state = corpus_source_state(source, saes, config.corpus.max_tokens)
        remove_unfinished(folder.parts)
        before, counts = _read(folder), RowCounts()
        remote = checked_remote_parts(config) if before.complete_state != state else None
        load_job = cache(lambda: load_collect_job(config, saes, folder, progress))
        if before.complete_state != state:
            if runner.is_elsewhere:
                pieces = partial(_token_pieces, load_tokenizer(config.model.name))
                _absorb(folder, pieces)
                if remote is not None:
                    bring_parts(
                        remote, load_job(), folder, lambda: _absorb(folder, pieces), progress
                    )
                known = _read(folder)
                collect_on_workers(
                    runner, config, folder, source, saes, known, counts, progress, allow_mismatch
                )
                _absorb(folder, pieces)
                runner.let_go()  # the model is not needed any more
            else:

                def documents() -> Iterator[Document]:
                    counts.begin_again()
                    return corpus_documents(source, counts, load_job().model)

                _collect_rest(
                    load_job(), documents, config, folder, progress, allow_mismatch, remote
                )
            if remote is not None:
                leave_notes(remote, folder)
            # With `max_tokens` reading stops before the end, where bad rows are judged.
            check_bad_share(source, counts)
        described = describe_features(config, folder, progress, load_job)
        load_job.cache_clear()
        gc.collect()  # model and hooks refer to each other; the next one is larger
        losses = measure_losses(config, folder, saes, progress)
        if described.has_changed or losses.has_changed or before.complete_state != state:
            with open_work(folder.path) as work:
                mark_complete(work, state)
                publish(work, folder.path)
        run.stages.append(
            StageReport(
                stage="collect",
                unit="tokens",
                done=_read(folder).n_tokens - before.n_tokens,
                already_done=before.n_tokens,
                seconds=time.monotonic() - started,
                notes=_notes(counts) + described.notes + losses.notes + retry_notes(retried),
            )
        )
        return run.stages[-1]


@flow(name="collect-shard", validate_parameters=False)
def collect_shard(
    config: Config,
    folder: RunFolder,
    shard: Shard,
    progress: Progress,
    allow_mismatch: bool = False,
) -> StageReport:
    """Collects what is missing of one shard into parts, and leaves the database alone.

    Any number of shards may be collected at once, on any machines that share the folder of
    parts, whose parts are copied into it, or that put them under one URL; `collect_contexts`
    brings together what is there.

    Args:
        config: of the run.
        folder: of the run.
        shard: which chunks.
        progress: where it is shown.
        allow_mismatch: go on also where an SAE does not fit what it reads.
    """
    started, done = time.monotonic(), 0
    with clear_disk_errors(folder.path), noting_retries() as retried:
        source, counts = settled_corpus(config, folder), RowCounts()
        remove_unfinished(folder.parts)
        remote, known = checked_remote_parts(config), _in_parts(folder)
        job = load_collect_job(config, sae_sources(config), folder, progress)
        if remote is not None:
            known |= chunks_elsewhere(remote, job)
            put_left_parts(remote, folder, shard)

        def begin() -> Iterator[TokenizedChunk]:
            counts.begin_again()
            cut = cut_chunks(corpus_documents(source, counts, job.model), known)
            return job.pending_chunks(cut, known, config.corpus.max_tokens, shard)

        with progress.stage("collect", total=None, unit="tokens") as stage:
            for name in _collect_parts(job, begin, config, folder, stage, allow_mismatch):
                part = read_part(folder.parts / name)
                done += sum(chunk["n_tokens"] for chunk in part.manifest["chunks"])
                if remote is not None:
                    move_part(remote, part)
        check_bad_share(source, counts)
    place = folder.parts if remote is None else remote.url
    return StageReport(
        stage="collect",
        unit="tokens",
        done=done,
        already_done=sum(each.n_tokens for number, each in known.items() if shard.owns(number)),
        seconds=time.monotonic() - started,
        notes=(
            *_notes(counts),
            *retry_notes(retried),
            f"what there is of shard {shard} lies in {place}; "
            f"`scopenote collect {folder.path}` brings all that lies there together",
        ),
    )


def _in_parts(folder: RunFolder) -> dict[int, CollectedChunk]:
    """The chunks of all parts that are there, by number; read without the database."""
    return {
        chunk["chunk"]: CollectedChunk(chunk["chunk_id"], chunk["n_documents"], chunk["n_tokens"])
        for part in list_parts(folder.parts)
        if part.stage in ("collect", "merged")
        for chunk in part.manifest["chunks"]
    }


def _collect_rest(
    job: CollectJob,
    documents: Callable[[], Iterator[Document]],
    config: Config,
    folder: RunFolder,
    progress: Progress,
    allow_mismatch: bool,
    remote: RemoteParts | None,
) -> None:
    """Collects and absorbs the chunks that are not in the database."""
    pieces = partial(_token_pieces, job.model.tokenizer)
    _absorb(folder, pieces)  # what a run that died had finished
    if remote is not None:
        bring_parts(remote, job, folder, lambda: _absorb(folder, pieces), progress)
    before = _read(folder)
    max_tokens = config.corpus.max_tokens

    def begin() -> Iterator[TokenizedChunk]:
        cut = cut_chunks(documents(), before.chunks)
        return job.pending_chunks(cut, before.chunks, max_tokens)

    left = max(max_tokens - before.n_tokens, 0) if max_tokens else None
    with progress.stage("collect", total=left, unit="tokens") as stage:
        for _ in _collect_parts(job, begin, config, folder, stage, allow_mismatch):
            pass
        _absorb(folder, pieces)


def _say_passes(job: CollectJob, stage: Stage) -> None:
    if len(job.passes) > 1:
        sizes = ", ".join(str(len(group)) for group in job.passes)
        stage.progress.say(
            f"collect: {len(job.saes)} SAEs do not fit into memory together: {len(job.passes)} "
            f"passes over each part's text, of {sizes}; [collect] memory_gib allows more"
        )


def _collect_parts(
    job: CollectJob,
    begin: Callable[[], Iterator[TokenizedChunk]],
    config: Config,
    folder: RunFolder,
    stage: Stage,
    allow_mismatch: bool,
) -> Iterator[str]:
    """Collects what the stream has into parts, and gives their names as they are finished."""
    _say_passes(job, stage)
    stream = ChunkStream(begin)
    while patiently("reading the corpus", stream.has_more):
        group = stream.group(config.collect.chunks_per_part)
        yield collect_part(as_is(job), as_is(group), as_is(folder), as_is(stage), allow_mismatch)


@retried_task("collect-part")
def collect_part(
    job: CollectJob,
    chunks: ChunkGroup,
    folder: RunFolder,
    stage: Stage,
    allow_mismatch: bool,
) -> str:
    """Collects these chunks into one part; gives its name."""
    with stage.attempt() as advance:
        done = write_collected(job, chunks, folder, allow_mismatch, advance)
    if done.remark:
        stage.progress.say(done.remark)
    return done.part_id


def _read(folder: RunFolder) -> Collected:
    with open_work(folder.path) as work:
        return read_collected(work)


def _absorb(folder: RunFolder, pieces: Callable[[], pa.Table]) -> None:
    with open_work(folder.path) as work:
        absorb_collected(work, folder.parts, pieces)


def _token_pieces(tokenizer: Any) -> pa.Table:
    ids, texts, contents = zip(*load_token_pieces(tokenizer), strict=True)
    return pa.table({"token_id": ids, "text": texts, "bytes": contents})


def _notes(counts: RowCounts) -> tuple[str, ...]:
    notes = []
    if counts.n_bad:
        notes.append(f"{counts.n_bad:,} bad rows skipped: {counts.describe_bad()}")
    if counts.empty:
        notes.append(f"{counts.empty:,} empty rows skipped")
    return tuple(notes)
