"""Scores of labels in words: a language model predicts by them, and is judged by the truth.

The steps are in `rate_steps`. All calls are made in one event loop, on the record; a model that
only reads makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby, product

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from ..evaluate.intervals import draw_resamples
from ..evaluate.metrics import HEADLINE
from ..evaluate.score_label import ScoredLabel
from ..label.call_records import CallRecords
from ..label.chat import ChatRequest
from ..label.labelling import Ask
from ..label.recorded_client import RecordedClient
from ..store.contexts import (
    load_background,
    read_background_prefixes,
    read_features,
    read_prefixes,
)
from ..store.database import Store, open_store
from ..store.errors import BudgetSpent, EndpointRefuses
from ..store.gold import has_gold
from ..store.journal import Journal
from ..store.known_calls import KnownCalls
from ..store.labels import read_labels_by_id
from ..store.parts import write_part
from ..store.records import Call, content_hash
from ..store.scores import score_tables
from .ask_job import Asked
from .batches import as_is
from .event_loop import EventLoopThread
from .judges import Judge, Texts, opened_judge
from .rate_gold import PURPOSE as GOLD_PURPOSE
from .rate_gold import gold_notes, rate_gold
from .rate_job import LabelBatch, RatedBatch, RateJob, RateStep, RateWork, Unscored
from .rate_steps import STEPS

# Each takes some hundred calls: what a task has scored is in the database soon.
_FEATURES_PER_TASK = 8


@task(name="rate-labels", cache_policy=NO_CACHE, persist_result=False)
def rate_batch(sae_id: str, label_ids: Sequence[str], work: RateWork) -> RatedBatch:
    """Scores labels of neighbouring features into a part."""
    if work.stopped:
        return RatedBatch()
    scored: list[ScoredLabel] = []
    try:
        work.job.spending.allowance.require_time()
        for each in work.step.rate(read_batch(sae_id, label_ids, work), work):
            scored.append(each)
            work.advance(1)
    except (EndpointRefuses, BudgetSpent) as error:
        # What the others came to is kept, and so is each call of this one. The frames that it
        # came through hold connections.
        work.stopped.append(error.with_traceback(None))
    _write(scored, work)
    return _counted(scored)


def rate_labels(job: RateJob, rated: Asked, again: bool) -> None:
    """Scores all labels in words that a judge has not scored. Within a flow.

    Args:
        job: what is to be rated.
        rated: what came of it on `score` is added.
        again: afterwards those too of which newer text has overtaken the scores.

    Raises:
        ConfigurationError: no key, no such address, or a budget for a model without a price.
        ModelError: the model was to run here and cannot be loaded.
    """
    jobs = [job, replace(job, again=True)] if again else [job]
    with open_store(job.folder.path) as store:
        if not any(find(store, each).missing for each in jobs for find in STEPS):
            return
    with EventLoopThread() as loop, opened_judge(job.kind, job.settings, loop) as judge:
        if job.settings.chat.gold and not _has_gold(job, judge):
            _rate_gold(job, judge, rated)
        for each, find in product(jobs, STEPS):
            if rated.stopped is not None:
                break
            # What a step finds is read from the database that has the scores of the one before.
            with open_store(job.folder.path) as store:
                step = find(store, each)
                if step.missing:
                    _rate(step, each, store, judge, rated)
            job.absorb()
        if judge.client is not None:
            rated.lacking = judge.client.lacking


def _has_gold(job: RateJob, judge: Judge) -> bool:
    with open_store(job.folder.path) as store:
        return has_gold(store.connection, judge.name, job.run_id)


def _rate_gold(job: RateJob, judge: Judge, rated: Asked) -> None:
    with open_store(job.folder.path) as store, ExitStack() as stack:
        ask = _ask(GOLD_PURPOSE, job, store, judge, rated, stack)
        try:
            standing = rate_gold(job, store, judge, ask)
        except (EndpointRefuses, BudgetSpent) as error:
            rated.stopped = error.with_traceback(None)
        else:
            rated.notes += gold_notes(standing)
    job.absorb()


def _rate(step: RateStep, job: RateJob, store: Store, judge: Judge, rated: Asked) -> None:
    whole = RatedBatch()
    with ExitStack() as stack:
        total = sum(map(len, step.missing.values()))
        stage = stack.enter_context(job.progress.stage("score", total=total, unit=step.unit))
        ask = _ask(step.purpose, job, store, judge, rated, stack)
        work = begin_step(step, job, store, judge, ask, stage.advance)
        futures = [
            rate_batch.submit(sae_id, as_is(label_ids), as_is(work))
            for sae_id, label_ids in label_blocks(step.missing)
        ]
        for future in as_completed(futures):
            batch: RatedBatch = future.result()
            whole.add(batch)
    rated.failed_windows += whole.failed_windows
    if step.is_score:
        rated.labels += whole.labels
    else:
        rated.steps[step.unit] += whole.labels.total()
    rated.n_windows += whole.n_windows
    rated.n_windows_at_most += whole.n_windows_at_most
    if work.stopped:
        rated.stopped = work.stopped[0]


def begin_step(
    step: RateStep,
    job: RateJob,
    store: Store,
    judge: Judge,
    ask: Ask,
    advance: Callable[[int], None],
) -> RateWork:
    """What all batches of a step need, read once."""
    return RateWork(
        job=job,
        step=step,
        judge=judge,
        store=store,
        backgrounds=(
            load_background(store.connection, "explain"),
            load_background(store.connection, step.split),
        ),
        pool_prefixes=read_background_prefixes(store.connection, step.split),
        token_texts=store.token_texts(),
        resamples=draw_resamples(job.settings.seed, job.settings.resamples),
        ask=ask,
        advance=advance,
        stopped=[],
    )


def _ask(
    purpose: str, job: RateJob, store: Store, judge: Judge, rated: Asked, stack: ExitStack
) -> Ask:
    """Asks on the record, for as long as the stack is open."""
    if judge.client is None:
        return _nobody_asks
    prices = job.settings.chat.known_prices()
    journal = stack.enter_context(Journal(job.folder.journal))
    recorded = RecordedClient(
        client=judge.client,
        known=KnownCalls(store, job.folder.journal, job.retry_failed),
        journal=journal,
        records=CallRecords(prices, purpose, kept_logprobs=judge.kept_logprobs),
        budget=job.spending.budget(store.connection, judge.model, prices),
        tally=rated.tally,
        allowance=job.spending.allowance,
    )
    return recorded.ask


async def _nobody_asks(request: ChatRequest, n_static: int) -> Call:
    raise AssertionError("a model that only reads is not asked")


def label_blocks(missing: Unscored) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Labels of neighbouring features, SAE by SAE."""
    for sae_id, labels in missing.items():
        for _, block in groupby(labels, key=lambda each: each[0] // _FEATURES_PER_TASK):
            yield sae_id, tuple(label_id for _, label_id in block)


def read_batch(sae_id: str, label_ids: Sequence[str], work: RateWork) -> LabelBatch:
    """Labels of neighbouring features, and what is kept of the features."""
    split = work.backgrounds[1].split
    with work.store.cursor() as connection:
        labels = read_labels_by_id(connection, label_ids)
        numbers = [label.feature_id.feature for label in labels]
        features = range(min(numbers), max(numbers) + 1)
        explain, score = (
            {
                each.feature_id.feature: each
                for each in read_features(connection, sae_id, features, pool)
            }
            for pool in work.backgrounds
        )
        prefixes = {**work.pool_prefixes, **read_prefixes(connection, sae_id, features, split)}
    texts = Texts(work.token_texts.__getitem__, prefixes.__getitem__)
    return LabelBatch(sae_id, labels, explain, score, texts)


def _write(scored: Sequence[ScoredLabel], work: RateWork) -> None:
    scores = [each for one in scored for each in one.scores]
    simulations = [each for one in scored for each in one.simulations]
    if not scores:
        return
    # The run too: what failed and is asked for again may have the same windows.
    content = [
        work.job.run_id,
        *(
            [each.label_id, each.scorer, each.simulator, each.metric, each.contexts_hash]
            for each in scores
        ),
    ]
    tables = score_tables(scores, simulations, work.job.run_id)
    write_part(work.job.folder.parts, f"score-{content_hash(content)}", "score", tables, {})


def _counted(scored: Sequence[ScoredLabel]) -> RatedBatch:
    batch = RatedBatch()
    for one in scored:
        first = one.scores[0]
        batch.labels[first.reason or ""] += 1
        batch.failed_windows.update(
            each.reason or "" for each in one.simulations if each.status == "failed"
        )
        if first.metric == HEADLINE and "n_windows_at_most" in first.design:
            batch.n_windows += first.n_windows
            batch.n_windows_at_most += first.design["n_windows_at_most"]
    return batch
