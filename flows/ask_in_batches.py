"""Labels by way of batches, at half the price: submit, leave, come back, bring in.

A round brings in what batches have come to, writes the labels that follow from what is on record,
and submits the requests that it lacks, those that repair bad replies among them. So each round
goes from the record alone, and it does not matter which process began what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..label.batch_client import BatchClient
from ..label.recorded_client import RecordReader
from ..store.batch_record import Batch, batches_under_way, requests_under_way
from ..store.database import open_store, open_work, publish_if_behind
from ..store.errors import EndpointRefuses
from ..store.known_calls import KnownCalls
from ..store.request_files import RequestFile
from .ask_job import Asked, AskJob
from .ask_models import label_missing, plan_for
from .bring_in_batches import bring_in_batches
from .event_loop import EventLoopThread
from .submit_batches import submit_batches

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_GROWTH = 1.5


def ask_in_batches(job: AskJob, asked: Asked, wait: bool) -> None:
    """Labels all features whose answers have come, and has the others asked for in batches.

    Within a flow: the batches of features are its tasks.

    Args:
        job: what is asked.
        asked: what came of it is added.
        wait: stay until no batch is under way.

    Raises:
        ConfigurationError: no key, no such address, or a budget for a model without a price.
    """
    # Made at once, so that a missing key is said before anything is worked out.
    with job.settings.chat.batch_client() as client:
        pauses = _pauses()
        while True:
            n_calls = asked.tally.n_calls
            _go_round(job, client, asked)
            # A budget that is spent is no reason not to wait for what was paid for.
            is_in_vain = isinstance(asked.stopped, EndpointRefuses)
            if not wait or not asked.under_way or is_in_vain:
                return
            if asked.tally.n_calls > n_calls:
                pauses = _pauses()
            try:
                _wait_for_an_end(job, client, asked.under_way, pauses)
            except EndpointRefuses as refusal:
                asked.stopped = refusal
                return


def _go_round(job: AskJob, client: BatchClient, asked: Asked) -> None:
    asked.stopped = None
    asked.n_waiting = 0
    asked.held_back.clear()
    bring_in_batches(job, asked)
    wanted = _label_from_record(job, asked)
    job.absorb()
    if asked.stopped is None:
        try:
            submit_batches(job, client, wanted, asked)
        except EndpointRefuses as refusal:
            asked.stopped = refusal
    wanted.unlink()
    with open_work(job.folder.path) as work:
        asked.under_way = batches_under_way(work)
        publish_if_behind(work, job.folder.path)


def _label_from_record(job: AskJob, asked: Asked) -> Path:
    """Writes the labels that can be, and gives the file of the requests that others lack."""
    job.folder.batches.mkdir(exist_ok=True)
    with (
        open_store(job.folder.path) as store,
        RequestFile(job.folder.batches / "wanted.jsonl") as wanted,
        EventLoopThread() as loop,
    ):
        known = KnownCalls(store, job.folder.journal, job.retry_failed, job.began_at)
        reader = RecordReader(known, requests_under_way(store.connection), wanted)
        plan = plan_for(job, store)
        if plan.wanted:
            label_missing(job, store, plan, reader.ask, loop, asked, unit="prompts")
        return wanted.path


def _pauses() -> Iterator[float]:
    seconds = _FIRST_PAUSE_SECONDS
    while True:
        yield seconds
        seconds = min(_LONGEST_PAUSE_SECONDS, seconds * _GROWTH)


def _wait_for_an_end(
    job: AskJob, client: BatchClient, batches: Sequence[Batch], pauses: Iterator[float]
) -> None:
    """Asks after the batches at this endpoint until one has ended; of others it knows nothing."""
    n_requests = sum(batch.n_requests for batch in batches)
    ours = [batch.provider_id for batch in batches if batch.endpoint == client.address]
    with job.progress.stage("batches", total=n_requests, unit="requests") as stage:
        while True:
            time.sleep(next(pauses))
            found = [client.retrieve(provider_id) for provider_id in ours if provider_id]
            stage.advance(sum(each.n_done for each in found) - stage.done)
            if not found or any(each.has_ended for each in found):
                return
