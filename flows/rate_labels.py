"""Scores of labels in words: a language model rates tokens by them, and is judged by the truth.

First, on `select`, the labels of features that have several; then, on `score`, of an explainer's
candidates the one that came out highest; then some features under another feature's label, which
says what a label is worth that has nothing to do with its feature. All calls are made in one event
loop, on the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from ..evaluate.chat_simulator import ChatSimulator
from ..evaluate.intervals import Resamples, draw_resamples
from ..evaluate.label_figures import ScoreSettings
from ..evaluate.metrics import HEADLINE
from ..evaluate.score_label import ScoredLabel, score_label, score_shuffled
from ..evaluate.scored_windows import few_windows
from ..evaluate.token_ratings import digits_of
from ..label.budget import Budget
from ..label.call_records import CallRecords
from ..label.chat import ChatClient
from ..label.labelling import Ask
from ..label.recorded_client import RecordedClient
from ..store.batch_record import batches_under_way
from ..store.contexts import (
    BackgroundWindows,
    load_background,
    read_background_prefixes,
    read_features,
    read_prefixes,
)
from ..store.database import Store, open_store
from ..store.errors import BudgetSpent, EndpointRefuses, ScopenoteError
from ..store.journal import Journal
from ..store.known_calls import KnownCalls
from ..store.labels import read_labels_by_id
from ..store.parts import write_part
from ..store.records import FeatureContexts, FeatureId, Label, content_hash
from ..store.run_folder import RunFolder
from ..store.scores import (
    ShuffledLabel,
    chosen_to_score,
    rivals_to_select_from,
    score_tables,
    shuffled_labels,
)
from ..store.splits import Split
from .ask_job import Asked, usd_spent, usd_under_way
from .batches import as_is
from .event_loop import EventLoopThread
from .explain_settings import EMBEDDED_EXPLAINERS
from .progress import Progress
from .score_settings import ScoreSection

PURPOSE = "simulate"
# Each takes some hundred calls: what a task has scored is in the database soon.
_FEATURES_PER_TASK = 8

Unscored = Mapping[str, Sequence[tuple[int, str]]]


@dataclass(frozen=True, slots=True)
class RateJob:
    """What is to be rated, and where what comes of it goes.

    Attributes:
        settings: how labels are scored.
        folder: the run.
        progress: where it is shown.
        run_id: the run that the scores are of.
        budget_usd: what the whole run may cost, with what it has cost already.
        retry_failed: send again what got no reply before.
        absorb: brings finished parts and journals into the database and publishes it.
    """

    settings: ScoreSection
    folder: RunFolder
    progress: Progress
    run_id: str
    budget_usd: Decimal | None
    retry_failed: bool
    absorb: Callable[[], None]

    @property
    def simulator(self) -> str:
        """What the scores are stored under."""
        (name,) = (each for each in self.settings.simulator_names if each.startswith("chat/"))
        return name


@dataclass(frozen=True, slots=True)
class RateWork:
    """What all batches of one step need; `shuffled` is empty where labels are taken as they are."""

    job: RateJob
    store: Store
    backgrounds: tuple[BackgroundWindows, BackgroundWindows]
    pool_prefixes: Mapping[int, Sequence[int]]
    token_texts: Mapping[int, str]
    resamples: Resamples
    shuffled: Mapping[str, ShuffledLabel]
    ask: Ask
    loop: EventLoopThread
    advance: Callable[[int], None]
    stopped: list[ScopenoteError]


@dataclass(slots=True)
class RatedBatch:
    """What came of some labels.

    Attributes:
        labels: by the reason why their headline is undefined; "" where it is defined.
        failed_windows: by the reason.
    """

    labels: Counter[str] = field(default_factory=Counter)
    failed_windows: Counter[str] = field(default_factory=Counter)


@task(name="rate-labels", cache_policy=NO_CACHE, persist_result=False)
def rate_batch(sae_id: str, label_ids: Sequence[str], work: RateWork) -> RatedBatch:
    """Scores labels of neighbouring features into a part."""
    if work.stopped:
        return RatedBatch()
    scored: list[ScoredLabel] = []
    for label, explain, score, simulator in _with_contexts(sae_id, label_ids, work):
        settings = _settings(work.job)
        shuffled = work.shuffled.get(label.label_id)
        try:
            if shuffled is None:
                scored.append(
                    score_label(label, explain, score, simulator, work.resamples, settings)
                )
            else:
                other = FeatureId(sae_id, shuffled.other_feature)
                scored.append(
                    score_shuffled(
                        label,
                        other,
                        shuffled.other_text,
                        explain,
                        score,
                        simulator,
                        work.resamples,
                        settings,
                    )
                )
        except (EndpointRefuses, BudgetSpent) as error:
            # What the others came to is kept, and so is each call of this one. The frames that it
            # came through hold connections.
            work.stopped.append(error.with_traceback(None))
            break
        work.advance(1)
    scores = [each for one in scored for each in one.scores]
    simulations = [each for one in scored for each in one.simulations]
    if scores:
        # The run too: what failed and is asked for again may have the same windows.
        content = [
            work.job.run_id,
            *([each.label_id, each.scorer, each.simulator, each.contexts_hash] for each in scores),
        ]
        tables = score_tables(scores, simulations, work.job.run_id)
        write_part(work.job.folder.parts, f"score-{content_hash(content)}", "score", tables, {})
    return RatedBatch(
        Counter(each.reason or "" for each in scores if each.metric == HEADLINE),
        Counter(each.reason or "" for each in simulations if each.status == "failed"),
    )


def rate_labels(job: RateJob, rated: Asked) -> None:
    """Scores all labels in words that the model has not judged. Within a flow.

    Args:
        job: what is to be rated.
        rated: what came of it on `score` is added.

    Raises:
        ConfigurationError: no key, no such address, or a budget for a model without a price.
        ModelError: the model was to run here and cannot be loaded.
    """
    with open_store(job.folder.path) as store:
        if not any(step(store, job).missing for step in _STEPS):
            return
    with EventLoopThread() as loop, loop.entered(job.settings.chat.client()) as client:
        for next_step in _STEPS:
            # What a step finds is read from the database that has the scores of the one before.
            with open_store(job.folder.path) as store:
                step = next_step(store, job)
                if step.missing:
                    counted = _rate(step, job, store, client, loop, rated)
                    if next_step is _score_the_best:
                        rated.labels += counted
                    else:
                        rated.notes.append(f"{counted.total():,} {step.unit}")
            job.absorb()
            if rated.stopped is not None:
                break
        rated.lacking = client.lacking


@dataclass(frozen=True, slots=True)
class RateStep:
    """Labels to be rated on one split.

    Attributes:
        missing: the labels.
        unit: what is counted meanwhile.
        shuffled: the labels of other features that take their places, by label id.
    """

    split: Split
    missing: Unscored
    unit: str
    shuffled: Mapping[str, ShuffledLabel] = field(default_factory=dict)


def _compare_rivals(store: Store, job: RateJob) -> RateStep:
    missing = rivals_to_select_from(store.connection, job.simulator, sorted(EMBEDDED_EXPLAINERS))
    return RateStep("select", missing, "labels compared on `select`")


def _score_the_best(store: Store, job: RateJob) -> RateStep:
    missing = chosen_to_score(store.connection, job.simulator, sorted(EMBEDDED_EXPLAINERS))
    return RateStep("score", missing, "labels")


def _score_shuffled(store: Store, job: RateJob) -> RateStep:
    found = shuffled_labels(store.connection, job.simulator, job.settings.chat.shuffled_labels)
    missing: dict[str, list[tuple[int, str]]] = {}
    for each in found.values():
        missing.setdefault(each.sae_id, []).append((each.feature, each.label_id))
    return RateStep("score", missing, "features rated under another feature's label", found)


_STEPS = (_compare_rivals, _score_the_best, _score_shuffled)


def _rate(
    step: RateStep,
    job: RateJob,
    store: Store,
    client: ChatClient,
    loop: EventLoopThread,
    rated: Asked,
) -> Counter[str]:
    chat = job.settings.chat
    prices = chat.known_prices()
    budget = None
    if job.budget_usd is not None:
        assert chat.model is not None, "the configuration was validated"
        spent = usd_spent(store.connection) + usd_under_way(batches_under_way(store.connection))
        budget = Budget(job.budget_usd, [chat.model], prices, spent)
    stopped: list[ScopenoteError] = []
    counted: Counter[str] = Counter()
    with (
        Journal(job.folder.journal) as journal,
        job.progress.stage(
            "score", total=sum(map(len, step.missing.values())), unit=step.unit
        ) as stage,
    ):
        recorded = RecordedClient(
            client=client,
            known=KnownCalls(store, job.folder.journal, job.retry_failed),
            journal=journal,
            records=CallRecords(prices, PURPOSE, kept_logprobs=digits_of),
            budget=budget,
            tally=rated.tally,
        )
        work = RateWork(
            job=job,
            store=store,
            backgrounds=(
                load_background(store.connection, "explain"),
                load_background(store.connection, step.split),
            ),
            pool_prefixes=read_background_prefixes(store.connection, step.split),
            token_texts=store.token_texts(),
            resamples=draw_resamples(job.settings.seed, job.settings.resamples),
            shuffled=step.shuffled,
            ask=recorded.ask,
            loop=loop,
            advance=stage.advance,
            stopped=stopped,
        )
        futures = [
            rate_batch.submit(sae_id, as_is(label_ids), as_is(work))
            for sae_id, label_ids in _blocks(step.missing)
        ]
        for future in as_completed(futures):
            batch: RatedBatch = future.result()
            counted += batch.labels
            rated.failed_windows += batch.failed_windows
    if stopped:
        rated.stopped = stopped[0]
    return counted


def _blocks(missing: Unscored) -> Iterator[tuple[str, tuple[str, ...]]]:
    for sae_id, labels in missing.items():
        for _, block in groupby(labels, key=lambda each: each[0] // _FEATURES_PER_TASK):
            yield sae_id, tuple(label_id for _, label_id in block)


def _with_contexts(
    sae_id: str, label_ids: Sequence[str], work: RateWork
) -> Iterator[tuple[Label, FeatureContexts, FeatureContexts, ChatSimulator]]:
    chat = work.job.settings.chat
    assert chat.model is not None, "the configuration was validated"
    split = work.backgrounds[1].split
    with work.store.cursor() as connection:
        labels = read_labels_by_id(connection, label_ids)
        numbers = [label.feature_id.feature for label in labels]
        features = range(min(numbers), max(numbers) + 1)
        explain, score = (
            {each.feature_id: each for each in read_features(connection, sae_id, features, pool)}
            for pool in work.backgrounds
        )
        prefixes = {**work.pool_prefixes, **read_prefixes(connection, sae_id, features, split)}
    simulator = ChatSimulator(
        model=chat.model,
        ask=work.ask,
        run=lambda rating: work.loop.submit(rating).result(),
        token_text=work.token_texts.__getitem__,
        prefix_of=prefixes.__getitem__,
    )
    for label in labels:
        shown = few_windows(score[label.feature_id], chat.active_windows, chat.silent_windows)
        yield label, explain[label.feature_id], shown, simulator


def _settings(job: RateJob) -> ScoreSettings:
    return ScoreSettings(level=job.settings.level, seed=job.settings.seed)
