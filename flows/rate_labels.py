"""Scores of labels in words: a language model predicts by them, and is judged by the truth.

The steps are in `rate_steps`. Each task rates some labels, in threads of this process or on a
worker; all calls of a process are made in one event loop, on the record. A model that only reads
makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product
from typing import TYPE_CHECKING
from uuid import uuid4

from ..label.budget import Budget
from ..store.database import Store, open_store
from ..store.gold import has_gold
from ..store.splits import Split
from .ask_job import Asked
from .rate_gold import gold_notes, gold_standing
from .rate_job import RatedBatch, RateJob, RateStep, RateTerms, Unscored
from .rate_steps import STEPS, FindStep
from .rated_labels import (
    OpenJudge,
    RatedPiece,
    RatePiece,
    ScoreDatabase,
    gold_on_share,
    rate_on_share,
)
from .runners import Runner
from .shares import Purse, Share, run_in_shares
from .task_policy import retried_task
from .worker_state import held_no_longer, listening

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

# Each takes some hundred calls: what a task has scored is in the database soon.
_FEATURES_PER_TASK = 8


@retried_task("rate-labels")
def rate_batch(
    runner: Runner,
    terms: RateTerms,
    judge: OpenJudge,
    database: ScoreDatabase,
    step: RateStep,
    listener: str,
    piece: RatePiece,
    share: Share,
) -> RatedPiece:
    """Rates labels of neighbouring features into a part."""
    return runner.call(rate_on_share, terms, judge, database, step, listener, piece, share)


@retried_task("rate-gold")
def rate_gold(
    runner: Runner,
    terms: RateTerms,
    judge: OpenJudge,
    database: ScoreDatabase,
    piece: RatePiece,
    share: Share,
) -> RatedPiece:
    """Rates the gold items into a part."""
    return runner.call(gold_on_share, terms, judge, database, piece, share)


def rate_labels(job: RateJob, rated: Asked, again: bool, steps: Sequence[FindStep] = STEPS) -> None:
    """Scores all labels in words that a judge has not scored. Within a flow.

    Args:
        job: what is to be rated.
        rated: what came of it on `score` is added.
        again: afterwards those too of which newer text has overtaken the scores.
        steps: of rating, each from the state that the one before left.

    Raises:
        ConfigurationError: no key, no such address, or a budget for a model without a price.
        ModelError: the model was to run here and cannot be loaded.
    """
    jobs = [job, replace(job, again=True)] if again else [job]
    with open_store(job.folder.path) as store:
        if not any(find(store, each).missing for each in jobs for find in steps):
            return
        wants_gold = job.settings.chat.gold and not has_gold(
            store.connection, job.simulator, job.run_id
        )
    with held_no_longer():
        if wants_gold:
            _rate_gold(job, rated)
        for each, find in product(jobs, steps):
            if rated.stopped is not None:
                break
            # What a step finds is read from the database that has the scores of the one before.
            with held_no_longer("database"):
                _rate(find, each, rated)
            job.absorb()


def _rate_gold(job: RateJob, rated: Asked) -> None:
    with open_store(job.folder.path) as store:
        database, purse = _database(job, store, "score"), _purse(job, store)
    terms, judge = job.terms, _judge(job)

    def begin(piece: RatePiece, share: Share) -> PrefectFuture[RatedPiece]:
        return job.runner.submit(
            rate_gold, terms=terms, judge=judge, database=database, piece=piece, share=share
        )

    with held_no_longer("database"):
        for done in run_in_shares(begin, [RatePiece("gold", ())], purse):
            rated.add_spent(done.spent)
    rated.stopped = purse.stopped
    if purse.stopped is None:
        rated.notes += gold_notes(gold_standing(job.folder, job.simulator))
    job.absorb()


def _rate(find: Callable[[Store, RateJob], RateStep], job: RateJob, rated: Asked) -> None:
    with open_store(job.folder.path) as store:
        step = find(store, job)
        if not step.missing:
            return
        database, purse = _database(job, store, step.split), _purse(job, store)
    terms, judge, listener = job.terms, _judge(job), uuid4().hex
    sent = replace(step, missing={})

    def begin(piece: RatePiece, share: Share) -> PrefectFuture[RatedPiece]:
        return job.runner.submit(
            rate_batch,
            terms=terms,
            judge=judge,
            database=database,
            step=sent,
            listener=listener,
            piece=piece,
            share=share,
        )

    whole = RatedBatch()
    total = sum(map(len, step.missing.values()))
    pieces = [RatePiece(*block) for block in label_blocks(step.missing)]
    with (
        job.progress.stage("score", total=total, unit=step.unit) as stage,
        listening(listener, stage.advance),
    ):
        for done in run_in_shares(begin, pieces, purse):
            whole.add(done.counts)
            rated.add_spent(done.spent)
            if job.runner.is_elsewhere:
                stage.advance(done.counts.labels.total())
    rated.failed_windows += whole.failed_windows
    if step.is_score:
        rated.labels += whole.labels
    else:
        rated.steps[step.unit] += whole.labels.total()
    rated.n_windows += whole.n_windows
    rated.n_windows_at_most += whole.n_windows_at_most
    rated.stopped = purse.stopped


def _n_places(job: RateJob) -> int:
    """Tasks at once: no more than calls, so that each process may make one."""
    if job.kind == "local":
        return job.runner.n_askers
    return min(job.runner.n_askers, job.settings.chat.concurrency)


def _judge(job: RateJob) -> OpenJudge:
    return OpenJudge(job.kind, job.settings, min(job.runner.n_clients, _n_places(job)))


def _database(job: RateJob, store: Store, split: Split) -> ScoreDatabase:
    folder = job.folder.path.absolute()
    return ScoreDatabase(folder, store.revision, split, job.settings, job.retry_failed)


def _purse(job: RateJob, store: Store) -> Purse:
    budget: Budget | None = None
    if job.kind != "local":
        chat = job.settings.chat
        assert chat.model is not None, "the configuration was validated"
        budget = job.spending.budget(store.connection, chat.model, chat.known_prices())
    return Purse(budget, job.spending.allowance, _n_places(job))


def label_blocks(missing: Unscored) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Labels of neighbouring features, SAE by SAE."""
    for sae_id, labels in missing.items():
        for _, block in groupby(labels, key=lambda each: each[0] // _FEATURES_PER_TASK):
            yield sae_id, tuple(label_id for _, label_id in block)
