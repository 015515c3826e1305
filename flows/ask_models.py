"""Labels from language models: prompts out, replies onto the record, labels into parts.

Tasks render prompts and wait; all calls are made in one event loop, in a thread of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from ..label.call_records import CallRecords
from ..label.labelling import Ask, Asking, write_label
from ..label.prompted import PromptedExplainer
from ..label.recorded_client import RecordedClient
from ..store.batch_record import batches_under_way, requests_under_way
from ..store.database import Store, now, open_store
from ..store.errors import BudgetSpent, EndpointRefuses, NotYetAnswered, ScopenoteError
from ..store.journal import Journal
from ..store.known_calls import KnownCalls
from ..store.labels import label_tables
from ..store.parts import write_part
from ..store.records import Label, content_hash
from ..store.run_folder import RunFolder
from ..store.wanted_labels import Proposer, Why, newest_shown, text_state, wanted_draws
from .ask_job import PURPOSE, Asked, AskJob
from .batches import as_is, task_blocks
from .event_loop import EventLoopThread
from .feature_prompts import PromptSource
from .label_plan import LabelPlan, plan_labels

# So long may finished labels be invisible to readers.
_SECONDS_BETWEEN_ABSORPTIONS = 60.0


@dataclass(frozen=True, slots=True)
class AskWork:
    """What all batches of one explainer need."""

    explainer: PromptedExplainer
    why: Why
    prompts: PromptSource
    asking: Asking
    n_draws: int
    text_state: str | None
    ask: Ask
    loop: EventLoopThread
    folder: RunFolder
    run_id: str
    advance: Callable[[int], None]
    stopped: list[ScopenoteError]


@dataclass(slots=True)
class AskedBatch:
    """What came of some features: labels by the reason of failure, and how many come later."""

    labels: Counter[str] = field(default_factory=Counter)
    n_waiting: int = 0


@task(name="ask-models", cache_policy=NO_CACHE, persist_result=False)
def ask_batch(sae_id: str, features: tuple[int, ...], work: AskWork) -> AskedBatch:
    """Labels features of one SAE into a part."""
    if work.stopped:
        return AskedBatch()
    name, version, model = work.explainer.name, work.explainer.version, work.asking.model
    begun: list[tuple[int, Future[Label]]] = []
    with work.prompts.store.cursor() as connection:
        made = newest_shown(connection, Proposer(name, version, model), sae_id, features)
        for feature_id, prompt in work.prompts.render(connection, work.explainer, sae_id, features):
            shown = made.get(feature_id.feature)
            generation, draws = wanted_draws(shown, work.why, work.n_draws)
            for draw in draws:
                label = write_label(feature_id, name, prompt, version, work.asking, draw, work.ask)
                begun.append((generation, work.loop.submit(label)))
                begun[-1][1].add_done_callback(lambda _: work.advance(1))
    labels: list[Label] = []
    n_waiting = 0
    for generation, each in begun:
        try:
            labels.append(replace(each.result(), generation=generation, why=work.why))
        except NotYetAnswered:
            n_waiting += 1
        except (EndpointRefuses, BudgetSpent) as error:
            # What the others came to is kept. The frames that it came through hold connections.
            work.stopped.append(error.with_traceback(None))
    if labels:
        # The run too: what failed and is asked for again has the same label ids.
        content = content_hash([name, version, work.run_id, [each.label_id for each in labels]])
        tables = label_tables(labels, work.run_id, now(), work.text_state)
        write_part(work.folder.parts, f"explain-{content}", "explain", tables, {})
    return AskedBatch(Counter(label.reason or "" for label in labels), n_waiting)


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
    chat = job.settings.chat
    with open_store(job.folder.path) as store:
        plan = plan_for(job, store, asked)
        if not plan.wanted:
            return
        prices = chat.known_prices()
        under_way = batches_under_way(store.connection)
        model = job.settings.asking().model
        with (
            Journal(job.folder.journal) as journal,
            EventLoopThread() as loop,
            loop.entered(chat.client()) as client,
        ):
            recorded = RecordedClient(
                client=client,
                known=KnownCalls(store, job.folder.journal, job.retry_failed),
                journal=journal,
                records=CallRecords(prices, PURPOSE),
                budget=job.spending.budget(store.connection, model, prices, under_way),
                in_batches=requests_under_way(store.connection),
                tally=asked.tally,
                allowance=job.spending.allowance,
            )
            label_missing(job, store, plan, recorded.ask, loop, asked)
            asked.lacking = client.lacking
        asked.under_way = under_way


def plan_for(job: AskJob, store: Store, asked: Asked) -> LabelPlan:
    """What the model is to be asked about now; says so, and notes what need not be asked again."""
    plan = plan_labels(store, job.settings, lambda: PromptSource.of(store))
    if plan.checked:
        state = text_state(store.connection)
        tables = label_tables([], job.run_id, now(), state, plan.checked)
        name = f"explain-checked-{content_hash([state, *plan.checked])}"
        write_part(job.folder.parts, name, "explain", tables, {})
    if plan.wanted:
        job.progress.say(f"explain: {plan}")
    plan = plan.first(job.at_most)
    asked.left = plan.left
    return plan


def label_missing(
    job: AskJob,
    store: Store,
    plan: LabelPlan,
    ask: Ask,
    loop: EventLoopThread,
    asked: Asked,
    unit: str = "labels",
) -> None:
    """Labels features, wherever the answers come from.

    Args:
        job: what is asked.
        store: the published database.
        plan: the features, and why.
        ask: gives the answers, in the loop.
        loop: where it runs.
        asked: labels, those that wait, and why it stopped early are added.
        unit: what is counted meanwhile.
    """
    prompts = PromptSource.of(store)
    stopped: list[ScopenoteError] = []
    absorbed_at = time.monotonic()
    n_draws = job.settings.candidates
    state = text_state(store.connection)
    explainers = {each.name: each for each in job.explainers}
    for why, name, missing in plan.groups():
        if stopped:
            break
        n_labels = (1 if why == Why.LOW else n_draws) * sum(map(len, missing.values()))
        with job.progress.stage("explain", total=n_labels, unit=unit) as stage:
            work = AskWork(
                explainer=explainers[name],
                why=why,
                prompts=prompts,
                asking=job.settings.asking(),
                n_draws=n_draws,
                text_state=state,
                ask=ask,
                loop=loop,
                folder=job.folder,
                run_id=job.run_id,
                advance=stage.advance,
                stopped=stopped,
            )
            size = job.settings.features_per_task
            for batch in _batches(work, missing, size):
                asked.labels += batch.labels
                asked.reasons[why] += batch.labels[""]
                asked.n_waiting += batch.n_waiting
                if time.monotonic() - absorbed_at > _SECONDS_BETWEEN_ABSORPTIONS:
                    job.absorb()
                    absorbed_at = time.monotonic()
    if stopped:
        asked.stopped = stopped[0]


def _batches(work: AskWork, missing: Mapping[str, list[int]], size: int) -> Iterator[AskedBatch]:
    futures = [
        ask_batch.submit(sae_id, as_is(features), as_is(work))
        for sae_id, features in task_blocks(missing, size)
    ]
    for future in as_completed(futures):
        yield future.result()
