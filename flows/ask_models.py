"""Labels from language models: prompts out, replies onto the record, labels into parts.

Tasks render prompts and wait; all calls are made in one event loop, in a thread of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from decimal import Decimal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from ..label.budget import Budget
from ..label.labelling import Asking, write_label
from ..label.pricing import in_dollars
from ..label.prompted import PromptedExplainer
from ..label.recorded_client import RecordedClient, Tally
from ..store.calls import spent
from ..store.database import Store, now
from ..store.errors import BudgetSpent, EndpointRefuses, ScopenoteError
from ..store.journal import Journal
from ..store.known_calls import KnownCalls
from ..store.labels import draws_made, label_tables
from ..store.parts import write_part
from ..store.records import Label, content_hash
from ..store.run_folder import RunFolder
from .batches import as_is, task_blocks
from .event_loop import EventLoopThread
from .explain_settings import ExplainSection
from .feature_prompts import PromptSource, features_to_ask_about
from .progress import Progress

# So long may finished labels be invisible to readers.
_SECONDS_BETWEEN_ABSORPTIONS = 60.0


@dataclass(frozen=True, slots=True)
class AskWork:
    """What all batches of one explainer need."""

    explainer: PromptedExplainer
    prompts: PromptSource
    asking: Asking
    n_draws: int
    client: RecordedClient
    loop: EventLoopThread
    folder: RunFolder
    run_id: str
    advance: Callable[[int], None]
    stopped: list[ScopenoteError]


@dataclass(slots=True)
class Asked:
    """What came of asking models.

    Attributes:
        labels: how many were written, by the reason of failure; "" for those that are labels.
        tally: the calls.
        lacking: what the endpoint turned out not to offer, and what it said about that.
        stopped: why asking ended early, where it did.
    """

    labels: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    lacking: Mapping[str, str] = field(default_factory=dict)
    stopped: ScopenoteError | None = None


@task(name="ask-models", cache_policy=NO_CACHE, persist_result=False)
def ask_batch(sae_id: str, features: tuple[int, ...], work: AskWork) -> Counter[str]:
    """Labels features of one SAE into a part; counts labels and failures."""
    if work.stopped:
        return Counter()
    name, version, model = work.explainer.name, work.explainer.version, work.asking.model
    begun: list[Future[Label]] = []
    with work.prompts.store.cursor() as connection:
        made = draws_made(connection, sae_id, features, name, version, model)
        for feature_id, prompt in work.prompts.render(connection, work.explainer, sae_id, features):
            for draw in range(work.n_draws):
                if (feature_id.feature, draw) not in made:
                    label = write_label(
                        feature_id, name, prompt, version, work.asking, draw, work.client.ask
                    )
                    begun.append(work.loop.submit(label))
                    begun[-1].add_done_callback(lambda _: work.advance(1))
    labels: list[Label] = []
    for each in begun:
        try:
            labels.append(each.result())
        except (EndpointRefuses, BudgetSpent) as error:
            # What the others came to is kept.
            work.stopped.append(error)
    if labels:
        content = content_hash([name, version, [label.label_id for label in labels]])
        tables = label_tables(labels, work.run_id, now())
        write_part(work.folder.parts, f"explain-{content}", "explain", tables, {})
    return Counter(label.reason or "" for label in labels)


def ask_models(
    explainers: Sequence[PromptedExplainer],
    settings: ExplainSection,
    folder: RunFolder,
    progress: Progress,
    store: Store,
    run_id: str,
    budget_usd: Decimal | None,
    retry_failed: bool,
    absorb: Callable[[], None],
) -> Asked:
    """Labels all features that a model has not been asked about.

    Within a flow: the batches are its tasks.

    Args:
        explainers: whose prompts.
        settings: how the model is asked.
        folder: the run.
        progress: where it is shown.
        store: the published database, all journals absorbed.
        run_id: the run that the labels are of.
        budget_usd: what the whole run may cost, with what it has cost already.
        retry_failed: send again what got no reply before.
        absorb: brings finished parts into the database; called now and then.

    Raises:
        ConfigurationError: no key, no such address, or a budget for a model without a price.
        ModelError: the model was to run here and cannot be loaded.
    """
    asked = Asked()
    missing = {each.name: features_to_ask_about(store, each, settings) for each in explainers}
    if not any(missing.values()):
        return asked
    asking = settings.asking()
    prices = settings.chat.known_prices()
    budget = None
    if budget_usd is not None:
        budget = Budget(budget_usd, [asking.model], prices, usd_spent(store))
    prompts = PromptSource.of(store)
    with (
        Journal(folder.journal) as journal,
        EventLoopThread() as loop,
        loop.entered(settings.chat.client()) as client,
    ):
        known = KnownCalls(store, folder.journal, replies_only=retry_failed)
        recorded = RecordedClient(client, known, journal, prices, "explain", budget, asked.tally)
        stopped: list[ScopenoteError] = []
        absorbed_at = time.monotonic()
        for explainer in explainers:
            n_labels = settings.candidates * sum(map(len, missing[explainer.name].values()))
            if stopped or not n_labels:
                continue
            with progress.stage("explain", total=n_labels, unit="labels") as stage:
                work = AskWork(
                    explainer=explainer,
                    prompts=prompts,
                    asking=asking,
                    n_draws=settings.candidates,
                    client=recorded,
                    loop=loop,
                    folder=folder,
                    run_id=run_id,
                    advance=stage.advance,
                    stopped=stopped,
                )
                for batch in _batches(work, missing[explainer.name], settings.features_per_task):
                    asked.labels += batch
                    if time.monotonic() - absorbed_at > _SECONDS_BETWEEN_ABSORPTIONS:
                        absorb()
                        absorbed_at = time.monotonic()
        asked.lacking = client.lacking
        asked.stopped = stopped[0] if stopped else None
    return asked


def notes_on(asked: Asked) -> tuple[str, ...]:
    """What a person should know about it, a sentence each."""
    tally = asked.tally
    if not tally.n_calls and not tally.n_known:
        return ()
    calls = (
        f"{tally.n_calls:,} calls, {tally.prompt_tokens:,} tokens read and "
        f"{tally.completion_tokens:,} written, {in_dollars(tally.usd)}"
    )
    if tally.n_unpriced:
        calls += f" without {tally.n_unpriced:,} calls of unknown price"
    if tally.n_known:
        calls += f"; {tally.n_known:,} more were answered from the record"
    return (
        calls,
        *(f"the endpoint has no {name}: {words}" for name, words in asked.lacking.items()),
    )


def usd_spent(store: Store) -> Decimal:
    """What the calls of a run have cost, as far as is known."""
    return sum((each.usd or Decimal(0) for each in spent(store.connection)), Decimal(0))


def _batches(work: AskWork, missing: Mapping[str, list[int]], size: int) -> Iterator[Counter[str]]:
    futures = [
        ask_batch.submit(sae_id, as_is(features), as_is(work))
        for sae_id, features in task_blocks(missing, size)
    ]
    for future in as_completed(futures):
        yield future.result()
