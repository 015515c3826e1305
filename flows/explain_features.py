"""The flow that writes a label for every feature from its `explain` contexts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from ..store.errors import AllowanceSpent
from ..store.labels import count_labels, forget_failures, label_tables
from ..store.parts import remove_unfinished, write_part
from ..store.records import Label, content_hash
from ..store.run_folder import RunFolder, clear_disk_errors
from ..store.wanted_labels import Proposer, Why, newest_shown, standings, text_state
from .ask_in_batches import ask_in_batches
from .ask_job import Asked, AskJob, notes_on
from .ask_models import ask_models
from .batches import require_collected, run_over_features, side_by_side
from .bring_in_batches import bring_in_batches
from .config import Config
from .progress import Progress
from .recorded_runs import recorded_run
from .reports import StageReport

UNCHANGED = "unchanged"
"""Counted of labels that newer text might have changed, and has not."""


@dataclass(frozen=True, slots=True)
class ExplainWork:
    """What all batches of one explainer need."""

    explainer: Explainer
    store: Store
    background: BackgroundWindows
    texts: Mapping[int, str]
    text_state: str | None
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
    at_most: int | None = None,
) -> StageReport:
    """Labels every feature that an explainer has not seen as it is now, and publishes the labels.

    Args:
        config: of the run.
        folder: of the run.
        progress: where it is shown.
        budget_usd: what the calls of the run may cost, with those made before.
        retry_failed: ask again for the labels of which a call got no reply.
        wait: where the model is asked in batches, stay until none is under way.
        at_most: features that a model is asked about now; None for all.

    Raises:
        EndpointRefuses: the model's endpoint answers no request; what it had answered is kept.
        BudgetSpent: the next call might cost more than is left of `budget_usd`, which counts what
            the run has cost already; likewise. What [budget] allows one invocation raises nothing.
    """
    started = time.monotonic()
    with recorded_run("explain", config, folder, budget_usd) as run, clear_disk_errors(folder.path):
        remove_unfinished(folder.parts)
        _absorb(folder)  # what a run that died had finished
        if retry_failed:
            with open_work(folder.path) as work:
                forget_failures(work, config.explain.prompted, NO_REPLY)
        require_collected(folder)
        asked = run.asked
        with open_store(folder.path) as store:
            for name in config.explain.explainers:
                if (explainer := EMBEDDED.get(name)) is not None:
                    for batch in _explain_with(
                        explainer, config, folder, progress, store, run.run_id
                    ):
                        asked.labels += batch
        job = AskJob(
            explainers=[PROMPTED[name] for name in config.explain.prompted],
            settings=config.explain,
            folder=folder,
            progress=progress,
            run_id=run.run_id,
            spending=run.spending,
            retry_failed=retry_failed,
            began_at=now(),
            absorb=partial(_absorb, folder),
            at_most=at_most,
        )
        _ask(job, asked, wait)
        done = Counter(asked.labels)
        unchanged = done.pop(UNCHANGED, 0)
        _absorb(folder)
        with open_work(folder.path) as work:
            n_labels = count_labels(work, config.explain.explainers)
        report = run.add(
            StageReport(
                stage="explain",
                unit="labels",
                done=done[""],
                already_done=n_labels - done.total(),
                reasons=dict(asked.reasons),
                left=asked.left,
                # A feature without any text is no failure of the work: it is said, not alarmed.
                failures={r: n for r, n in sorted(done.items()) if r not in ("", NEVER_ACTIVE)},
                seconds=time.monotonic() - started,
                notes=(*_notes(done[NEVER_ACTIVE], unchanged), *notes_on(asked, folder)),
                waiting=asked.n_waiting,
                is_spent=isinstance(asked.stopped, AllowanceSpent),
            )
        )
        if asked.stopped is not None and not isinstance(asked.stopped, AllowanceSpent):
            raise asked.stopped
        return report


@task(name="explain-features", cache_policy=NO_CACHE, persist_result=False)
def explain_batch(sae_id: str, features: range, work: ExplainWork) -> Counter[str]:
    """Labels consecutive features of one SAE into a part; counts labels and failures.

    Labels that are there and would come out of the same contexts are left.
    """
    explainer = work.explainer
    with work.store.cursor() as connection:
        before = newest_shown(connection, proposer_of(explainer), sae_id, features)
        contexts = read_features(connection, sae_id, features, work.background)
        labels = [explainer.explain(each, work.texts.__getitem__) for each in contexts]
    new: list[Label] = []
    checked: list[str] = []
    for label in labels:
        shown = before.get(label.feature_id.feature)
        if shown is None:
            new.append(replace(label, why=Why.NO_LABEL))
        elif shown.window_ids == frozenset(label.window_ids):
            checked += shown.label_ids
        else:
            new.append(replace(label, why=Why.CHANGED, generation=shown.generation + 1))
    names = [each.label_id for each in new]
    content = content_hash([explainer.name, explainer.version, names, work.text_state, checked])
    tables = label_tables(new, work.run_id, now(), work.text_state, checked)
    write_part(work.folder.parts, f"explain-{content}", "explain", tables, {})
    return Counter([label.reason or "" for label in new] + [UNCHANGED] * (len(labels) - len(new)))


def proposer_of(explainer: Explainer) -> Proposer:
    """Who labels by an embedded explainer are by."""
    return Proposer(explainer.name, explainer.version)


def _explain_with(
    explainer: Explainer,
    config: Config,
    folder: RunFolder,
    progress: Progress,
    store: Store,
    run_id: str,
) -> Iterator[Counter[str]]:
    missing: dict[str, list[int]] = {}
    for each in standings(store.connection, proposer_of(explainer)):
        missing.setdefault(each.sae_id, []).append(each.feature)
    if not missing:
        return
    background = load_background(store.connection, "explain")
    work = ExplainWork(
        explainer=explainer,
        store=store,
        background=background,
        texts=store.token_texts(),
        text_state=text_state(store.connection),
        folder=folder,
        run_id=run_id,
    )
    stage = partial(progress.stage, "explain", unit="features")
    yield from run_over_features(
        explain_batch, work, missing, config.explain.features_per_task, stage
    )


def _ask(job: AskJob, asked: Asked, wait: bool) -> None:
    """Has the explainers that ask a model do so, in the way that the configuration says."""
    asked.begin_round()
    if not job.explainers:
        return
    if job.settings.chat.batch:
        ask_in_batches(job, asked, wait)
        return
    # Batches may be under way from before the configuration was changed.
    bring_in_batches(job, asked)
    if asked.stopped is None:
        ask_models(job, asked)


def _notes(n_never_active: int, n_unchanged: int) -> Iterator[str]:
    if n_never_active:
        yield f"{n_never_active:,} features have no label: {NEVER_ACTIVE}"
    if n_unchanged:
        yield f"{n_unchanged:,} labels stay: newer text has not changed their contexts"


def _absorb(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        calls = absorb_journals(work, folder.journal)
        if absorb_results(work, folder.parts, "explain") or calls.n_journals:
            publish(work, folder.path)
