"""Second opinions computed again from the record of calls: the same questions, the same replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect.futures import as_completed

from ..evaluate.score_label import ScoredLabel
from ..label.chat import ChatRequest
from ..store.database import Store
from ..store.errors import StoreError
from ..store.known_calls import KnownCalls
from ..store.parts import write_part
from ..store.records import Call, content_hash
from ..store.scored_before import opinions_before
from ..store.scores import score_tables
from ..store.steered_scores import INTERVENTION
from .batches import as_is
from .event_loop import EventLoopThread
from .judges import Judge
from .progress import Progress
from .rate_job import RateSource, RateTerms, RateWork
from .rate_labels import label_blocks
from .rate_steps import opinion_step, tell_apart_step
from .rated_labels import read_batch
from .task_policy import retried_task

NOT_ASKED_SO = (
    "second opinions were asked for in other words or about other windows than `score.chat` says "
    "now: left as they are"
)


class NotOnRecord(StoreError):
    """The record has no such call."""


@dataclass(frozen=True, slots=True)
class RecordOnly:
    """Answers requests from the record and asks nobody."""

    known: KnownCalls

    async def ask(self, request: ChatRequest, n_static: int) -> Call:
        """The call of a request.

        Raises:
            NotOnRecord: it was never made.
        """
        if request.request_hash not in self.known:
            raise NotOnRecord("the record has no such call", where=request.request_hash)
        return self.known.find(request.request_hash)


def recompute_opinions(job: RateTerms, progress: Progress, store: Store) -> Counter[str]:
    """Computes the second opinions of the configured judge again into parts. Within a flow.

    Returns:
        Opinions by why they were left; "" for those that were computed.
    """
    counted: Counter[str] = Counter()
    name = job.settings.judge_name("chat")
    with EventLoopThread() as loop:
        judge = Judge("chat", job.settings, loop, None, None)
        record = RecordOnly(KnownCalls(store, job.folder.journal))
        steps = [
            opinion_step(opinion, opinions_before(store.connection, name, opinion))
            for opinion in job.settings.chat.second_opinions
        ]
        steps.append(tell_apart_step(opinions_before(store.connection, name, INTERVENTION)))
        for step in steps:
            if not step.missing:
                continue
            total = sum(map(len, step.missing.values()))
            with progress.stage("score", total=total, unit=step.unit) as stage:
                source = RateSource.of(store, step.split, job.settings)
                work = RateWork(job, step, judge, source, record.ask, stage.advance)
                futures = [
                    opinions_again.submit(sae_id, as_is(label_ids), as_is(work))
                    for sae_id, label_ids in label_blocks(step.missing)
                ]
                for future in as_completed(futures):
                    batch: Counter[str] = future.result()
                    counted += batch
    return counted


@retried_task("recompute-opinions")
def opinions_again(sae_id: str, label_ids: Sequence[str], work: RateWork) -> Counter[str]:
    """Computes the opinions on labels of neighbouring features into a part."""
    batch = read_batch(sae_id, label_ids, work)
    counted: Counter[str] = Counter()
    scored: list[ScoredLabel] = []
    for label in batch.labels:
        try:
            scored += work.step.rate(replace(batch, labels=[label]), work)
            counted[""] += 1
        except NotOnRecord:
            counted[NOT_ASKED_SO] += 1
        work.advance(1)
    scores = [each for one in scored for each in one.scores]
    if scores:
        keys = [[each.label_id, each.scorer, each.simulator] for each in scores]
        part = f"rescore-{content_hash([work.job.run_id, keys])}"
        tables = score_tables(scores, [], work.job.run_id)
        write_part(work.job.folder.parts, part, "rescore", {"scores": tables["scores"]}, {})
    return counted
