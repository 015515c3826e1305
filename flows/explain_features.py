"""The flow that writes a label for every feature from its `explain` contexts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import partial

from prefect import flow

from ..label.explainers import EMBEDDED, NEVER_ACTIVE
from ..label.labelling import NO_REPLY
from ..label.prompted import PROMPTED
from ..store.absorb import absorb_results
from ..store.calls import absorb_journals
from ..store.database import now, open_store, open_work, publish
from ..store.errors import AllowanceSpent
from ..store.labels import count_labels, forget_failures
from ..store.parts import remove_unfinished
from ..store.run_folder import RunFolder, clear_disk_errors
from ..store.wanted_labels import standings
from .ask_in_batches import ask_in_batches
from .ask_job import Asked, AskJob, notes_on
from .ask_models import ask_models
from .batches import require_collected, run_over_features
from .bring_in_batches import bring_in_batches
from .config import Config
from .embedded_labels import UNCHANGED, ExplainWork, label_range, proposer_of
from .progress import Progress
from .recorded_runs import recorded_run
from .reports import StageReport
from .runners import Runner, task_runner
from .task_policy import noting_retries, retried_task, retry_notes


@flow(name="explain-features", validate_parameters=False)
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
    with (
        recorded_run("explain", config, folder, budget_usd) as run,
        clear_disk_errors(folder.path),
        task_runner(config.runner, folder) as runner,
        noting_retries() as retried,
    ):
        remove_unfinished(folder.parts)
        _absorb(folder)  # what a run that died had finished
        if retry_failed:
            with open_work(folder.path) as work:
                forget_failures(work, config.explain.prompted, NO_REPLY)
        require_collected(folder)
        asked = run.asked
        for name in config.explain.explainers:
            if name in EMBEDDED:
                for batch in _explain_with(name, config, folder, progress, run.run_id, runner):
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
            absorb_parts=partial(_absorb_parts, folder),
            runner=runner,
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
                notes=(
                    *_notes(done[NEVER_ACTIVE], unchanged),
                    *notes_on(asked, folder),
                    *retry_notes(retried),
                ),
                waiting=asked.n_waiting,
                is_spent=isinstance(asked.stopped, AllowanceSpent),
            )
        )
        if asked.stopped is not None and not isinstance(asked.stopped, AllowanceSpent):
            raise asked.stopped
        return report


@retried_task("explain-features")
def explain_batch(runner: Runner, work: ExplainWork, sae_id: str, features: range) -> Counter[str]:
    """Labels consecutive features of one SAE into a part; counts as `label_range` does."""
    return runner.call(label_range, work, sae_id, features)


def _explain_with(
    name: str, config: Config, folder: RunFolder, progress: Progress, run_id: str, runner: Runner
) -> Iterator[Counter[str]]:
    missing: dict[str, list[int]] = {}
    with open_store(folder.path) as store:
        for each in standings(store.connection, proposer_of(EMBEDDED[name])):
            missing.setdefault(each.sae_id, []).append(each.feature)
        revision = store.revision
    if missing:
        work = ExplainWork(name, folder.path.absolute(), revision, run_id)
        stage = partial(progress.stage, "explain", unit="features")
        size = config.explain.features_per_task
        yield from run_over_features(runner, explain_batch, work, missing, size, stage)


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


def _absorb_parts(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        if absorb_results(work, folder.parts, "explain"):
            publish(work, folder.path)
