"""After collecting: what each feature does to the output, and which features are near it.

Part of the flow that collects. Whatever is there is not worked out again, and a run that was
collected before there was such a step gets it when it is next collected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from ..extract.collect_job import CollectJob
from ..extract.decoder_neighbours import nearest_by_cosine, neighbours_table
from ..extract.logit_effects import effects_table, logit_effects
from ..extract.saes import Sae
from ..store.cofiring import add_cofiring, missing_cofiring
from ..store.database import open_work
from ..store.decoder_effects import EffectKind, MissingEffects, absorb_effects, missing_effects
from ..store.errors import SaeError
from ..store.parts import write_part
from ..store.run_folder import RunFolder
from .batches import as_is
from .config import Config
from .progress import Progress

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
    """Works out what is missing of output tokens and neighbours, and absorbs it.

    Args:
        config: of the run; `collect.logit_effects` and `collect.neighbours` say what is wanted.
        folder: of the run, with its corpus collected.
        progress: where it is shown.
        load_job: gives model and SAEs; called only if something needs them.

    Raises:
        SaeError: an SAE's file is no longer the one that the run was collected with.
    """
    has_changed = _absorb(folder)  # what a run that died had finished
    kinds: list[EffectKind] = ["logits"] if config.collect.logit_effects else []
    kinds += ["cosine"] if config.collect.neighbours else []
    notes: tuple[str, ...] = ()
    for kind in kinds:
        if missing := _missing(folder, kind):
            job = load_job()
            with progress.stage(kind, sum(len(each.features) for each in missing), "features") as s:
                for each in missing:
                    describe_part(as_is(job), as_is(each), as_is(folder))
                    s.advance(len(each.features))
            has_changed |= _absorb(folder)
            if kind == "logits" and not job.model.config.tie_word_embeddings:
                notes = (NO_UNEMBEDDING,)
    if config.collect.neighbours:
        has_changed |= _add_cofiring(folder, progress)
    return Described(has_changed, notes)


@task(name="describe-features", cache_policy=NO_CACHE, persist_result=False)
def describe_part(job: CollectJob, missing: MissingEffects, folder: RunFolder) -> str:
    """Works out one part; gives its name."""
    sae, features = _same_sae(job, missing), missing.features
    if missing.kind == "logits":
        table = effects_table(features, logit_effects(job.model, sae, features))
    else:
        table = neighbours_table(features, nearest_by_cosine(sae, features))
    manifest = {"sae_id": sae.sae_id, "device": str(job.model.device)}
    write_part(folder.parts, missing.part_id, missing.kind, {missing.kind: table}, manifest)
    return missing.part_id


def _same_sae(job: CollectJob, missing: MissingEffects) -> Sae:
    for number, sae in enumerate(job.saes):
        if sae.sae_id == missing.sae_id and sae.content_hash == missing.weights:
            return job.with_weights(number)
    raise SaeError(
        "An SAE is no longer the one that this run folder was collected with.",
        where="[saes] paths",
        found=", ".join(f"{sae.sae_id} ({sae.content_hash})" for sae in job.saes),
        expected=f"{missing.sae_id} ({missing.weights})",
        mend="restore its file, or collect into another folder with --out",
    )


def _missing(folder: RunFolder, kind: EffectKind) -> list[MissingEffects]:
    with open_work(folder.path) as work:
        return missing_effects(work, kind)


def _absorb(folder: RunFolder) -> bool:
    with open_work(folder.path) as work:
        return absorb_effects(work, folder.parts) > 0


def _add_cofiring(folder: RunFolder, progress: Progress) -> bool:
    with open_work(folder.path) as work:
        missing = missing_cofiring(work)
        if missing:
            with progress.stage("cofiring", len(missing), "SAEs") as stage:
                for sae_id in missing:
                    add_cofiring(work, sae_id)
                    stage.advance()
    return bool(missing)
