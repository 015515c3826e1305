"""The flow that scores labels on text that none was written from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial

from prefect import flow

from ..evaluate.label_figures import ScoreSettings
from ..label.labelling import NO_REPLY
from ..store.absorb import absorb_results
from ..store.calls import absorb_journals
from ..store.database import open_store, open_work, publish, publish_if_behind
from ..store.errors import AllowanceSpent, ScopenoteError, StoreError
from ..store.labels import explainers_in_words
from ..store.leaks import require_no_leak
from ..store.parts import remove_unfinished
from ..store.run_folder import RunFolder, clear_disk_errors
from ..store.scores import count_scored_labels, forget_unrated, unscored_features
from .ask_job import Asked, notes_on
from .batches import require_collected, run_over_features
from .config import Config
from .explain_settings import EMBEDDED_EXPLAINERS
from .intervene import intervene
from .lookup_scores import SPLIT, ScoreWork, score_range
from .progress import Progress
from .rate_job import RateJob
from .rate_labels import rate_labels
from .rate_steps import ask_to_tell_apart
from .recorded_runs import recorded_run
from .reports import StageReport
from .runners import Runner, task_runner
from .task_policy import noting_retries, retried_task, retry_notes


@flow(name="score-labels", validate_parameters=False)
def score_labels(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    budget_usd: Decimal | None = None,
    retry_failed: bool = False,
    again: bool = True,
) -> StageReport:
    """Scores the labels that a simulator has not scored, and publishes the scores.

    Args:
        config: of the run.
        folder: of the run.
        progress: where it is shown.
        budget_usd: what the calls of the run may cost, with those made before.
        retry_failed: have labels rated again of which windows got no reply.
        again: do what waits for the last of several rounds: have labels rated again of which newer
            text has overtaken the scores, and turn features up.

    Raises:
        EndpointRefuses: the model's endpoint answers no request; what was scored is kept.
        BudgetSpent: the next call might cost more than is left of `budget_usd`; likewise.
        ModelError, SaeError: what is to be steered cannot be loaded; likewise.
        StoreError: text that labels are scored on is also text that they may come from.
    """
    started = time.monotonic()
    with (
        recorded_run("score", config, folder, budget_usd) as run,
        clear_disk_errors(folder.path),
        task_runner(config.runner, folder) as runner,
        noting_retries() as retried,
    ):
        remove_unfinished(folder.parts)
        _absorb(folder)  # what a run that died had finished
        require_collected(folder)
        _require_labels(folder)
        with open_work(folder.path) as work:
            require_no_leak(work)
        rated = run.rated
        rated.begin_round()
        if "token_lookup" in config.score.simulators:
            for explainer in sorted(EMBEDDED_EXPLAINERS.intersection(config.explain.explainers)):
                for batch in _score_with(explainer, config, folder, progress, run.run_id, runner):
                    rated.labels += batch
            _absorb(folder)
        if retry_failed:
            names = {config.score.judge_name(kind) for kind in ("chat", *config.score.judges)}
            with open_work(folder.path) as work:
                forget_unrated(work, sorted(names), NO_REPLY)
                publish_if_behind(work, folder.path)
        jobs = [
            RateJob(
                kind=kind,
                settings=config.score,
                folder=folder,
                progress=progress,
                run_id=run.run_id,
                spending=run.spending,
                retry_failed=retry_failed,
                absorb=partial(_absorb_and_publish, folder),
                runner=runner,
                compares_all=config.explain.again.below is not None,
            )
            for kind in config.score.judges
        ]
        for job in jobs:
            rate_labels(job, rated, again)
            if rated.stopped is not None:
                break
        if again and rated.stopped is None:
            _intervene(config, folder, progress, run.run_id, jobs, rated)
        undefined = rated.labels
        n_scored = undefined.total()
        with open_work(folder.path) as work:
            n_labels = count_scored_labels(work, config.score.simulator_names, SPLIT)
            unread = explainers_in_words(work, sorted(EMBEDDED_EXPLAINERS))
        report = run.add(
            StageReport(
                stage="score",
                unit="labels",
                done=n_scored,
                already_done=n_labels - n_scored,
                failures={
                    f"windows to be rated: {reason}": n
                    for reason, n in sorted(rated.failed_windows.items())
                },
                seconds=time.monotonic() - started,
                notes=(
                    *_notes(undefined, n_scored),
                    *_unread(config, unread),
                    *notes_on(rated, folder),
                    *retry_notes(retried),
                ),
                is_spent=isinstance(rated.stopped, AllowanceSpent),
            )
        )
        if rated.stopped is not None and not isinstance(rated.stopped, AllowanceSpent):
            raise rated.stopped
        return report


@retried_task("score-labels")
def score_batch(runner: Runner, work: ScoreWork, sae_id: str, features: range) -> Counter[str]:
    """Scores the labels of consecutive features into a part; counts as `score_range` does."""
    return runner.call(score_range, work, sae_id, features)


def _score_with(
    explainer: str,
    config: Config,
    folder: RunFolder,
    progress: Progress,
    run_id: str,
    runner: Runner,
) -> Iterator[Counter[str]]:
    with open_store(folder.path) as store:
        missing = unscored_features(store.connection, explainer, "token_lookup", SPLIT)
        revision = store.revision
    if missing:
        work = ScoreWork(
            explainer=explainer,
            settings=ScoreSettings(level=config.score.level, seed=config.score.seed),
            resamples=config.score.resamples,
            folder=folder.path.absolute(),
            revision=revision,
            run_id=run_id,
        )
        stage = partial(progress.stage, "score", unit="labels")
        size = config.score.features_per_task
        yield from run_over_features(runner, score_batch, work, missing, size, stage)


def _intervene(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    run_id: str,
    jobs: Sequence[RateJob],
    rated: Asked,
) -> None:
    """Turns features up, and has the judge that asks look at what comes out."""
    absorb = partial(_absorb_and_publish, folder)
    try:
        absorb()
        rated.notes += intervene(config, folder, progress, run_id, absorb)
        for job in jobs:
            rate_labels(job, rated, again=False, steps=[ask_to_tell_apart])
    except ScopenoteError as error:
        rated.stopped = error  # raised when what else was done is on record


def _require_labels(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        if not work.execute("SELECT 1 FROM labels LIMIT 1").fetchall():
            raise StoreError(
                "This run has no labels to score yet.",
                where=str(folder.path),
                expected="labels",
                mend=f"scopenote explain {folder.path}",
            )


def _notes(undefined: Counter[str], n_scored: int) -> tuple[str, ...]:
    n_undefined = n_scored - undefined[""]
    if not n_undefined:
        return ()
    reasons = "; ".join(f"{n:,} {reason}" for reason, n in undefined.most_common() if reason)
    return (f"{n_undefined:,} of {n_scored:,} headline scores are undefined (NULL): {reasons}",)


def _unread(config: Config, explainers: Sequence[str]) -> tuple[str, ...]:
    if not explainers or config.score.judges:
        return ()
    return (
        f"labels by {' and '.join(explainers)} are not scored: only a simulator such as `chat` "
        "reads what a label says (`score.simulators`)",
    )


def _absorb(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        calls = absorb_journals(work, folder.journal)
        absorb_results(work, folder.parts, "score")
        if calls.n_journals:
            publish(work, folder.path)


def _absorb_and_publish(folder: RunFolder) -> None:
    _absorb(folder)
    with open_work(folder.path) as work:
        publish_if_behind(work, folder.path)
