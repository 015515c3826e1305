"""Labels from language models: prompts out, replies onto the record, labels into parts.

Each task labels some features, in threads of this process or on a worker; all calls of a process
are made in one event loop, in a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

from ..label.budget import Allowance
from ..label.labelling import Ask
from ..store.batch_record import batches_under_way
from ..store.database import Store, now, open_store
from ..store.labels import label_tables
from ..store.parts import write_part
from ..store.records import content_hash
from ..store.wanted_labels import newest_shown, text_state, wanted_draws
from .ask_job import Asked, AskJob
from .asked_features import (
    AskedPiece,
    AskPiece,
    AskTerms,
    LabelDatabase,
    LabelWriter,
    WantedDraws,
    ask_for_labels,
    write_labels,
)
from .batches import task_blocks
from .event_loop import EventLoopThread
from .feature_prompts import PromptSource
from .label_plan import LabelPlan, plan_labels, proposer_of
from .progress import Stage
from .runners import Runner
from .shares import Purse, Share, run_in_shares
from .task_policy import retried_task
from .worker_state import held_no_longer, listening

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

# So long may finished labels be invisible to readers.
_SECONDS_BETWEEN_ABSORPTIONS = 60.0


@retried_task("ask-models")
def ask_batch(
    runner: Runner,
    terms: AskTerms,
    writer: LabelWriter,
    database: LabelDatabase,
    piece: AskPiece,
    share: Share,
) -> AskedPiece:
    """Has a model label some features, into a part."""
    return runner.call(ask_for_labels, terms, writer, database, piece, share)


@retried_task("answers-to-labels")
def label_batch(
    runner: Runner,
    terms: AskTerms,
    prompts: PromptSource,
    state: str | None,
    ask: Ask,
    loop: EventLoopThread,
    piece: AskPiece,
) -> AskedPiece:
    """Labels some features from answers that are here, into a part."""
    asked, stopped = write_labels(terms, prompts, state, ask, loop, piece)
    assert stopped is None, "nobody is asked"
    return asked


def ask_models(job: AskJob, asked: Asked) -> None:
    """Labels all features that a model has not been asked about, by a call each.

    Requests that are in a batch under way are left to it. Within a flow: the batches of features
    are its tasks.

    Args:
        job: what is asked.
        asked: what came of it is added.

    Raises:
        ConfigurationError: no key, no such address, or a budget for a model without a price.
        ModelError: the model was to run here and cannot be loaded.
    """
    chat, runner = job.settings.chat, job.runner
    with open_store(job.folder.path) as store:
        if asked.plan is None:
            asked.plan = plan_for(job, store)
        plan, asked.plan = asked.plan.split(job.at_most)
        asked.left = len(asked.plan.wanted)
        if not plan.wanted:
            return
        asked.under_way = batches_under_way(store.connection)
        model = job.settings.asking().model
        budget = job.spending.budget(store.connection, model, chat.known_prices(), asked.under_way)
        pieces = list(pieces_of(plan, job, store))
        revision = store.revision
    # No more tasks at once than calls, so that each process may make one.
    n_places = min(runner.n_askers, chat.concurrency)
    purse = Purse(budget, job.spending.allowance, n_places)
    terms = _terms(job)
    writer = LabelWriter(job.settings, min(runner.n_clients, n_places))
    database = LabelDatabase(terms.folder, revision, job.retry_failed)

    def begin(piece: AskPiece, share: Share) -> PrefectFuture[AskedPiece]:
        return runner.submit(
            ask_batch, terms=terms, writer=writer, database=database, piece=piece, share=share
        )

    with held_no_longer():
        _take_in(job, asked, terms, pieces, lambda some: run_in_shares(begin, some, purse))
    asked.stopped = purse.stopped


def plan_for(job: AskJob, store: Store) -> LabelPlan:
    """What the model is to be asked about now; says so, and notes what need not be asked again."""
    plan = plan_labels(store, job.settings, lambda: PromptSource.of(store))
    if plan.checked:
        state = text_state(store.connection)
        tables = label_tables([], job.run_id, now(), state, plan.checked)
        name = f"explain-checked-{content_hash([state, *plan.checked])}"
        write_part(job.folder.parts, name, "explain", tables, {})
    if plan.wanted:
        job.progress.say(f"explain: {plan}")
    return plan


def label_missing(
    job: AskJob,
    store: Store,
    plan: LabelPlan,
    ask: Ask,
    loop: EventLoopThread,
    asked: Asked,
    unit: str,
) -> None:
    """Labels features from answers that are here; what has none waits.

    Args:
        job: what is asked.
        store: the published database.
        plan: the features, and why.
        ask: gives the answers, in the loop.
        loop: where it runs.
        asked: labels and those that wait are added.
        unit: what is counted meanwhile.
    """
    terms, prompts = _terms(job), PromptSource.of(store)
    state = text_state(store.connection)

    def begin(piece: AskPiece, share: Share) -> PrefectFuture[AskedPiece]:
        return job.runner.submit(
            label_batch,
            terms=terms,
            prompts=prompts,
            state=state,
            ask=ask,
            loop=loop,
            piece=piece,
        )

    purse = Purse(None, Allowance(), job.runner.n_at_once)
    pieces = list(pieces_of(plan, job, store))
    _take_in(job, asked, terms, pieces, lambda some: run_in_shares(begin, some, purse), unit)


def pieces_of(plan: LabelPlan, job: AskJob, store: Store) -> Iterator[AskPiece]:
    """The plan cut into tasks: which labels exactly, by what is published now."""
    proposers = {each.name: proposer_of(each, job.settings) for each in job.explainers}
    for why, name, missing in plan.groups():
        for sae_id, features in task_blocks(missing, job.settings.features_per_task):
            made = newest_shown(store.connection, proposers[name], sae_id, features)
            wanted = []
            for feature in features:
                generation, draws = wanted_draws(made.get(feature), why, job.settings.candidates)
                wanted.append(WantedDraws(feature, generation, tuple(draws)))
            yield AskPiece(name, why, sae_id, tuple(wanted))


def _terms(job: AskJob) -> AskTerms:
    return AskTerms(job.settings, job.folder.path.absolute(), job.run_id, uuid4().hex)


def _take_in(
    job: AskJob,
    asked: Asked,
    terms: AskTerms,
    pieces: list[AskPiece],
    do: Callable[[Iterable[AskPiece]], Iterator[AskedPiece]],
    unit: str = "labels",
) -> None:
    """Has the pieces done, and adds up what they come to as they do."""
    absorbed_at = time.monotonic()
    n_labels = sum(len(each.draws) for piece in pieces for each in piece.wanted)
    with (
        job.progress.stage("explain", total=n_labels, unit=unit) as stage,
        listening(terms.listener, stage.advance),
    ):
        for batch in do(pieces):
            _count(batch, job, asked, stage)
            if time.monotonic() - absorbed_at > _SECONDS_BETWEEN_ABSORPTIONS:
                job.absorb_parts()
                absorbed_at = time.monotonic()


def _count(batch: AskedPiece, job: AskJob, asked: Asked, stage: Stage) -> None:
    asked.labels += batch.labels
    asked.reasons[batch.why] += batch.labels[""]
    asked.n_waiting += batch.n_waiting
    asked.add_spent(batch.spent)
    if job.runner.is_elsewhere:
        stage.advance(batch.n_done)
