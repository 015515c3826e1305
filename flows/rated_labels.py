"""Labels that a judge rates: the work of one task, in whatever process it is.

Nothing here knows Prefect or the flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from ..evaluate.judge_gold import drawn, judge_gold
from ..evaluate.metrics import HEADLINE
from ..evaluate.score_label import ScoredLabel
from ..label.call_records import CallRecords
from ..label.chat import ChatRequest
from ..label.labelling import Ask
from ..store.contexts import read_features, read_prefixes
from ..store.database import open_store
from ..store.errors import BudgetSpent, EndpointRefuses, ScopenoteError
from ..store.gold import gold_table, n_gold_runs
from ..store.known_calls import KnownCalls
from ..store.labels import read_labels_by_id
from ..store.parts import write_part
from ..store.records import Call, content_hash
from ..store.run_folder import RunFolder
from ..store.scores import score_tables
from ..store.splits import Split
from .event_loop import EventLoopThread
from .judges import Judge, Texts, opened_judge
from .model_line import CallRecord, SharedCalls, calls_on
from .rate_job import LabelBatch, RatedBatch, RateSource, RateStep, RateTerms, RateWork
from .score_settings import JudgeKind, ScoreSection
from .shares import Share, Spent
from .worker_state import Place, opened, tell

GOLD_PURPOSE = "gold"


@dataclass(frozen=True, slots=True)
class RatePiece:
    """Labels of neighbouring features of one SAE, which one task rates."""

    sae_id: str
    label_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RatedPiece:
    """What came of it.

    Attributes:
        counts: of what was rated.
        spent: what it cost, and why it ended early.
        rest: what is left of it then.
    """

    counts: RatedBatch = field(default_factory=RatedBatch)
    spent: Spent = field(default_factory=Spent)
    rest: RatePiece | None = None


@dataclass(frozen=True, slots=True)
class OpenJudge:
    """A judge, one of so many that are open at once."""

    kind: JudgeKind
    settings: ScoreSection
    n_clients: int
    place: ClassVar[Place] = "model"

    @contextmanager
    def open(self) -> Iterator[Judge]:
        """The judge and the loop in which it is asked."""
        with (
            EventLoopThread() as loop,
            opened_judge(self.kind, self.settings, loop, self.n_clients) as judge,
        ):
            yield judge


@dataclass(frozen=True, slots=True)
class ScoreDatabase:
    """The published database as labels are rated on it.

    Attributes:
        folder: the run's, absolute.
        revision: of the database.
        split: on which labels are rated.
        settings: how.
        retry_failed: send again what got no reply before.
    """

    folder: Path
    revision: str
    split: Split
    settings: ScoreSection
    retry_failed: bool
    place: ClassVar[Place] = "database"

    @contextmanager
    def open(self) -> Iterator[tuple[RateSource, CallRecord]]:
        """What labels are rated on, and the calls that were made before."""
        journal = RunFolder(self.folder).journal
        with open_store(self.folder) as store:
            known = KnownCalls(store, journal, self.retry_failed)
            try:
                source = RateSource.of(store, self.split, self.settings)
                yield source, CallRecord(known, journal)
            finally:
                known.close()


def rate_on_share(
    terms: RateTerms,
    judge: OpenJudge,
    database: ScoreDatabase,
    step: RateStep,
    listener: str,
    piece: RatePiece,
    share: Share,
) -> RatedPiece:
    """Rates labels into a part, on a share of what may be spent.

    Args:
        terms: how, and where scores go.
        judge: by whom.
        database: on what.
        step: what is done with each label.
        listener: who in the flow's process hears of each.
        piece: which labels.
        share: of what may be spent.
    """
    with opened(judge) as line, opened(database) as (source, record):
        with _asking(line, step.purpose, record, share) as (ask, calls):
            work = RateWork(terms, step, line, source, ask, lambda n: tell(listener, n))
            scored: list[ScoredLabel] = []
            stopped: ScopenoteError | None = None
            try:
                share.allowance(0).require_time()
                for each in step.rate(read_batch(piece.sae_id, piece.label_ids, work), work):
                    scored.append(each)
                    work.advance(1)
            except (EndpointRefuses, BudgetSpent) as error:
                # What the others came to is kept, and so is each call of this one. The frames
                # that it came through hold connections.
                stopped = error.with_traceback(None)
        _write(scored, work)
    rest = None
    if stopped is not None:
        done = {each.scores[0].label_id for each in scored}
        rest = replace(piece, label_ids=tuple(each for each in piece.label_ids if each not in done))
    spent = Spent(stopped=stopped) if calls is None else calls.spent(stopped)
    return RatedPiece(_counted(scored), spent, rest)


def gold_on_share(
    terms: RateTerms, judge: OpenJudge, database: ScoreDatabase, piece: RatePiece, share: Share
) -> RatedPiece:
    """Has a judge rate the gold items into a part, on a share of what may be spent.

    Every run asks anew, though the questions are the same: what has changed is to be noticed.
    """
    stopped: ScopenoteError | None = None
    with (
        opened(judge) as line,
        opened(database) as (source, record),
        _asking(line, GOLD_PURPOSE, record, share) as (ask, calls),
    ):
        with source.store.cursor() as connection:
            asks_anew = drawn(ask, n_gold_runs(connection, line.name))
        try:
            share.allowance(0).require_time()
            scores = judge_gold(
                lambda text, prefix_of: line.simulator(asks_anew, Texts(text, prefix_of)),
                terms.settings.seed,
            )
        except (EndpointRefuses, BudgetSpent) as error:
            stopped = error.with_traceback(None)
        else:
            part = f"gold-{content_hash([terms.run_id, line.name])}"
            table = gold_table(scores, terms.run_id, datetime.now(UTC))
            write_part(terms.folder.parts, part, "gold", {"gold_scores": table}, {})
    spent = Spent(stopped=stopped) if calls is None else calls.spent(stopped)
    return RatedPiece(spent=spent, rest=None if stopped is None else piece)


@contextmanager
def _asking(
    judge: Judge, purpose: str, record: CallRecord, share: Share
) -> Iterator[tuple[Ask, SharedCalls | None]]:
    """Asks a judge on the record; one that only reads is not asked."""
    if judge.client is None:
        yield _nobody_asks, None
        return
    prices = judge.settings.chat.known_prices()
    records = CallRecords(prices, purpose, kept_logprobs=judge.kept_logprobs)
    with calls_on(share, judge.client, judge.model, records, record) as calls:
        yield calls.client.ask, calls


async def _nobody_asks(request: ChatRequest, n_static: int) -> Call:
    raise AssertionError("a model that only reads is not asked")


def read_batch(sae_id: str, label_ids: Sequence[str], work: RateWork) -> LabelBatch:
    """Labels of neighbouring features, and what is kept of the features."""
    split = work.source.backgrounds[1].split
    with work.source.store.cursor() as connection:
        labels = read_labels_by_id(connection, label_ids)
        numbers = [label.feature_id.feature for label in labels]
        features = range(min(numbers), max(numbers) + 1)
        explain, score = (
            {
                each.feature_id.feature: each
                for each in read_features(connection, sae_id, features, pool)
            }
            for pool in work.source.backgrounds
        )
        prefixes = {
            **work.source.pool_prefixes,
            **read_prefixes(connection, sae_id, features, split),
        }
    texts = Texts(work.source.token_texts.__getitem__, prefixes.__getitem__)
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
