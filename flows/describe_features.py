"""After collecting: a feature's top tokens, its effect on the output, and what is near it.

Part of the flow that collects. Whatever is there is not worked out again, and a run that was
collected before there was such a step gets it when it is next collected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import duckdb
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from ..extract.collect_job import CollectJob, changed_sae
from ..extract.decoder_neighbours import nearest_by_cosine, neighbours_table
from ..extract.logit_effects import effects_table, logit_effects, unembedding
from ..extract.models import SubjectModel
from ..extract.saes import Sae
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
from .progress import Progress, Stage

# Features whose contexts are in memory at once.
_FEATURES_AT_ONCE = 256

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
    n_features = sum(len(features) for _, features in {(m.sae_id, m.features) for m in missing})
    with progress.stage("describe", n_features, "features") as stage:
        for (sae_id, weights), of_sae in groupby(missing, attrgetter("sae_id", "weights")):
            sae = _same_sae(job, sae_id, weights)
            for features, parts in groupby(of_sae, attrgetter("features")):
                for part in parts:
                    describe_part(as_is(job.model), as_is(sae), as_is(part), as_is(folder))
                stage.advance(len(features))


@task(name="describe-features", cache_policy=NO_CACHE, persist_result=False)
def describe_part(model: SubjectModel, sae: Sae, missing: MissingEffects, folder: RunFolder) -> str:
    """Works out one part; gives its name."""
    features = missing.features
    if missing.kind == "logits":
        table = effects_table(features, logit_effects(model, sae, features))
    else:
        table = neighbours_table(features, nearest_by_cosine(sae, features))
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
