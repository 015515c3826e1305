"""The flow that writes a label for every feature from its `explain` contexts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from ..label.explainers import EMBEDDED, NEVER_ACTIVE, Explainer
from ..label.labelling import NO_REPLY
from ..label.prompted import PROMPTED
from ..store.absorb import absorb_results
from ..store.calls import absorb_journals
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import Store, now, open_store, open_work, publish
from ..store.labels import count_labels, forget_failures, label_tables, unlabelled_features
from ..store.parts import remove_unfinished, write_part
from ..store.records import content_hash
from ..store.run_folder import RunFolder, clear_disk_errors
from .ask_in_batches import ask_in_batches
from .ask_job import Asked, AskJob, notes_on
from .ask_models import ask_models
from .batches import require_collected, run_over_features, side_by_side
from .bring_in_batches import bring_in_batches
from .config import Config
from .progress import Progress
from .recorded_runs import recorded_run
from .reports import StageReport


@dataclass(frozen=True, slots=True)
class ExplainWork:
    """What all batches of one explainer need."""

    explainer: Explainer
    store: Store
    background: BackgroundWindows
    texts: Mapping[int, str]
    folder: RunFolder
    run_id: str


@flow(name="explain-features", validate_parameters=False, task_runner=side_by_side())
def explain_features(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    budget_usd: Decimal | None = None,
    retry_failed: bool = False,
    wait: bool = False,
) -> StageReport:
    """Labels every feature that an explainer has not seen, and publishes the labels.

    Args:
        config: of the run.
        folder: of the run.
        progress: where it is shown.
        budget_usd: what the calls of the run may cost, with those made before.
        retry_failed: ask again for the labels of which a call got no reply.
        wait: where the model is asked in batches, stay until none is under way.

    Raises:
        EndpointRefuses: the model's endpoint answers no request; what it had answered is kept.
        BudgetSpent: the next call might cost more than is left of `budget_usd`, which counts what
            the run has cost already; likewise.
    """
    started = time.monotonic()
    with recorded_run("explain", config, folder) as run, clear_disk_errors(folder.path):
        remove_unfinished(folder.parts)
        _absorb(folder)  # what a run that died had finished
        if retry_failed:
            with open_work(folder.path) as work:
                forget_failures(work, config.explain.prompted, NO_REPLY)
        require_collected(folder)
        done: Counter[str] = Counter()
        with open_store(folder.path) as store:
            for name in config.explain.explainers:
                if (explainer := EMBEDDED.get(name)) is not None:
                    for batch in _explain_with(
                        explainer, config, folder, progress, store, run.run_id
                    ):
                        done += batch
        asked = _ask(config, folder, progress, run.run_id, budget_usd, retry_failed, wait)
        done += asked.labels
        _absorb(folder)
        with open_work(folder.path) as work:
            n_labels = count_labels(work, config.explain.explainers)
        run.stages.append(
            StageReport(
                stage="explain",
                unit="labels",
                done=done[""],
                already_done=n_labels - done.total(),
                # A feature without any text is no failure of the work: it is said, not alarmed.
                failures={r: n for r, n in sorted(done.items()) if r not in ("", NEVER_ACTIVE)},
                seconds=time.monotonic() - started,
                notes=(*_notes(done[NEVER_ACTIVE]), *notes_on(asked, folder)),
                waiting=asked.n_waiting,
            )
        )
        if asked.stopped is not None:
            raise asked.stopped
        return run.stages[-1]


@task(name="explain-features", cache_policy=NO_CACHE, persist_result=False)
def explain_batch(sae_id: str, features: range, work: ExplainWork) -> Counter[str]:
    """Labels consecutive features of one SAE into a part; counts labels and failures."""
    explainer = work.explainer
    with work.store.cursor() as connection:
        contexts = read_features(connection, sae_id, features, work.background)
        labels = [explainer.explain(each, work.texts.__getitem__) for each in contexts]
    content = content_hash([explainer.name, explainer.version, [each.label_id for each in labels]])
    tables = label_tables(labels, work.run_id, now())
    write_part(work.folder.parts, f"explain-{content}", "explain", tables, {})
    return Counter(label.reason or "" for label in labels)


def _explain_with(
    explainer: Explainer,
    config: Config,
    folder: RunFolder,
    progress: Progress,
    store: Store,
    run_id: str,
) -> Iterator[Counter[str]]:
    missing = unlabelled_features(store.connection, explainer.name, explainer.version)
    if not missing:
        return
    background = load_background(store.connection, "explain")
    work = ExplainWork(explainer, store, background, store.token_texts(), folder, run_id)
    stage = partial(progress.stage, "explain", unit="features")
    yield from run_over_features(
        explain_batch, work, missing, config.explain.features_per_task, stage
    )


def _ask(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    run_id: str,
    budget_usd: Decimal | None,
    retry_failed: bool,
    wait: bool,
) -> Asked:
    """Has the explainers that ask a model do so, in the way that the configuration says."""
    asked = Asked()
    if not config.explain.prompted:
        return asked
    job = AskJob(
        explainers=[PROMPTED[name] for name in config.explain.prompted],
        settings=config.explain,
        folder=folder,
        progress=progress,
        run_id=run_id,
        budget_usd=budget_usd,
        retry_failed=retry_failed,
        began_at=now(),
        absorb=partial(_absorb, folder),
    )
    if config.explain.chat.batch:
        ask_in_batches(job, asked, wait)
        return asked
    # Batches may be under way from before the configuration was changed.
    bring_in_batches(job, asked)
    if asked.stopped is None:
        ask_models(job, asked)
    return asked


def _notes(n_never_active: int) -> tuple[str, ...]:
    if not n_never_active:
        return ()
    return (f"{n_never_active:,} features have no label: {NEVER_ACTIVE}",)


def _absorb(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        calls = absorb_journals(work, folder.journal)
        if absorb_results(work, folder.parts, "explain") or calls.n_journals:
            publish(work, folder.path)
