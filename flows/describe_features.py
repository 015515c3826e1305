"""After collecting: a feature's top tokens, its effect on the output, and what is near it.

Part of the flow that collects. Whatever is there is not worked out again, and a run that was
collected before there was such a step gets it when it is next collected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import duckdb
import pyarrow as pa

from ..extract.collect_job import CollectJob, changed_sae
from ..extract.decoder_neighbours import nearest_by_cosine, neighbours_table
from ..extract.logit_effects import (
    effects_table,
    logit_effects,
    try_logit_effects,
    unembedding,
)
from ..extract.models import SubjectModel
from ..extract.saes import Sae
from ..extract.strongest import blocks_of
from ..label.top_tokens import top_tokens_table
from ..store.cofiring import add_cofiring, missing_cofiring
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import open_work
from ..store.decoder_effects import EffectKind, MissingEffects, absorb_effects, missing_effects
from ..store.parts import write_part
from ..store.run_folder import RunFolder
from ..store.strongest_tokens import missing_top_tokens, write_top_tokens
from .batches import as_is
from .config import Config
from .progress import Progress, Stage, duration
from .task_policy import retried_task

# Features whose contexts are in memory at once.
_FEATURES_AT_ONCE = 256
# Multiply-adds that any machine does in a minute or two.
_WORTH_SAYING = 10**12
# A slow machine takes some seconds for so many against the vocabulary of Gemma 2 2B.
_FEATURES_BETWEEN_LINES = 256

NO_UNEMBEDDING = (
    "output tokens are unknown: the model keeps its unembedding in a head that is not loaded"
)


@dataclass(frozen=True, slots=True)
class Described:
    """What was done.

    Attributes:
        has_changed: whether the database has.
        notes: what a person should know, a sentence each.
    """

    has_changed: bool
    notes: tuple[str, ...]


def describe_features(
    config: Config, folder: RunFolder, progress: Progress, load_job: Callable[[], CollectJob]
) -> Described:
    """Works out what is missing of top tokens, output tokens and neighbours, and absorbs it.

    Args:
        config: of the run; `collect.logit_effects` and `collect.neighbours` say what is wanted.
        folder: of the run, with its corpus collected.
        progress: where it is shown.
        load_job: gives model and SAEs; called only if something needs them.

    Raises:
        SaeError: an SAE's file is no longer the one that the run was collected with.
    """
    has_changed = _add_top_tokens(folder, progress)
    has_changed |= _absorb(folder)  # what a run that died had finished
    kinds: list[EffectKind] = ["logits"] if config.collect.logit_effects else []
    kinds += ["cosine"] if config.collect.neighbours else []
    notes: tuple[str, ...] = ()
    if missing := _missing(folder, kinds):
        job = load_job()
        _describe(job, missing, folder, progress)
        has_changed |= _absorb(folder)
        if any(part.kind == "logits" for part in missing) and unembedding(job.model) is None:
            notes = (NO_UNEMBEDDING,)
    if config.collect.neighbours:
        has_changed |= _add_cofiring(folder, progress)
    return Described(has_changed, notes)


def _describe(
    job: CollectJob, missing: list[MissingEffects], folder: RunFolder, progress: Progress
) -> None:
    """Works out the parts, SAE by SAE: not all of them may fit into memory at once."""
    n_rows = sum(len(part.features) for part in missing)
    with progress.stage("describe", n_rows, "rows") as stage:
        by_sae = groupby(missing, attrgetter("sae_id", "weights"))
        for number, ((sae_id, weights), of_sae) in enumerate(by_sae):
            sae = _same_sae(job, sae_id, weights)
            if number == 0:
                _say_cost(job, sae, missing, progress)
            for part in of_sae:
                describe_part(
                    as_is(job.model), as_is(sae), as_is(part), as_is(folder), as_is(stage)
                )


def _say_cost(job: CollectJob, sae: Sae, missing: list[MissingEffects], progress: Progress) -> None:
    """Says beforehand what will take minutes: how much it is, how long it takes, the way out."""
    saes = {sae.sae_id: sae.decoder.shape for sae in job.saes}
    rows = sum(len(part.features) for part in missing if part.kind == "logits")
    matrix = unembedding(job.model) if rows else None
    pairs = products = 0
    for part in missing:
        if part.kind == "cosine" and part.sae_id in saes:
            width, length = saes[part.sae_id]
            pairs += len(part.features) * width
            products += len(part.features) * width * length
    if matrix is not None:
        products += rows * matrix.numel()
    if products < _WORTH_SAYING:
        return
    each, expected = [], ""
    if matrix is not None:
        each.append(f"output tokens ({rows:,} features × {len(matrix):,} tokens)")
        seconds = products * _seconds_each(job.model, sae)
        expected = f", about {duration(seconds)} on {job.model.device}"
    if pairs:
        each.append(f"near features ({pairs:,} pairs)")
    progress.say(
        f"describe: {' and '.join(each)}, {products:.2g} multiply-adds{expected}; [collect] "
        "logit_effects = false and neighbours = false leave them out, and what is done is kept"
    )


def _seconds_each(model: SubjectModel, sae: Sae) -> float:
    """Of a multiply-add, tried out."""
    try_logit_effects(model, sae)  # the first time is slower
    started = time.monotonic()
    done = try_logit_effects(model, sae)
    return (time.monotonic() - started) / done


@retried_task("describe-features")
def describe_part(
    model: SubjectModel, sae: Sae, missing: MissingEffects, folder: RunFolder, stage: Stage
) -> str:
    """Works out one part; gives its name."""
    tables = []
    with stage.attempt() as advance:
        for features in blocks_of(missing.features, _FEATURES_BETWEEN_LINES):
            if missing.kind == "logits":
                tables.append(effects_table(features, logit_effects(model, sae, features)))
            else:
                tables.append(neighbours_table(features, nearest_by_cosine(sae, features)))
            advance(len(features))
    table = pa.concat_tables(tables)
    manifest = {"sae_id": sae.sae_id, "device": str(model.device)}
    write_part(folder.parts, missing.part_id, missing.kind, {missing.kind: table}, manifest)
    return missing.part_id


def _same_sae(job: CollectJob, sae_id: str, weights: str) -> Sae:
    for number, sae in enumerate(job.saes):
        if sae.sae_id == sae_id and sae.content_hash == weights:
            return job.with_weights(number)
    raise changed_sae(job.saes, sae_id, weights)


def _missing(folder: RunFolder, kinds: list[EffectKind]) -> list[MissingEffects]:
    with open_work(folder.path) as work:
        missing = [each for kind in kinds for each in missing_effects(work, kind)]
    return sorted(missing, key=lambda each: (each.sae_id, each.features.start))


def _absorb(folder: RunFolder) -> bool:
    with open_work(folder.path) as work:
        return absorb_effects(work, folder.parts) > 0


def _add_top_tokens(folder: RunFolder, progress: Progress) -> bool:
    with open_work(folder.path) as work:
        missing = missing_top_tokens(work)
        if missing:
            background = load_background(work, "explain")
            with progress.stage("tokens", sum(missing.values()), "features") as stage:
                for sae_id, width in missing.items():
                    rows = _top_tokens(work, sae_id, width, background, stage)
                    write_top_tokens(work, sae_id, rows)
    return bool(missing)


def _top_tokens(
    work: duckdb.DuckDBPyConnection,
    sae_id: str,
    width: int,
    background: BackgroundWindows,
    stage: Stage,
) -> pa.Table:
    tables = []
    for start in range(0, width, _FEATURES_AT_ONCE):
        features = range(start, min(start + _FEATURES_AT_ONCE, width))
        tables.append(top_tokens_table(read_features(work, sae_id, features, background)))
        stage.advance(len(features))
    return pa.concat_tables(tables)


def _add_cofiring(folder: RunFolder, progress: Progress) -> bool:
    with open_work(folder.path) as work:
        missing = missing_cofiring(work)
        if missing:
            with progress.stage("cofiring", len(missing), "SAEs") as stage:
                for sae_id in missing:
                    add_cofiring(work, sae_id)
                    stage.advance()
    return bool(missing)
