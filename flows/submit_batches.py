"""Submitting requests in batches: within the budget, and within what the provider lets wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ..label.batch_client import BatchClient
from ..label.batch_files import most_enqueued_tokens, write_batch_files
from ..label.budget import Budget
from ..label.call_records import CallRecords
from ..label.request_body import estimated_tokens
from ..store.batch_record import Batch, add_batch, read_batches
from ..store.database import now, open_work
from ..store.errors import BudgetSpent
from ..store.records import RecordedRequest
from ..store.request_files import read_requests
from .ask_job import PURPOSE, Asked, AskJob
from .batch_steps import submit_recorded
from .spending import usd_spent, usd_under_way


def submit_batches(job: AskJob, client: BatchClient, wanted: Path, asked: Asked) -> None:
    """Submits requests; what must wait is counted in `asked.held_back`.

    Each batch is on record before the provider hears of it. That the budget covers no further
    request is noted in `asked.stopped`.

    Args:
        job: what is asked.
        client: of the endpoint.
        wanted: the file of requests.
        asked: what is held back, and what the endpoint lacks, are noted.

    Raises:
        EndpointRefuses: the provider does not take a batch, or cannot be reached.
        ConfigurationError: there is a budget, and the model has no price.
    """
    folder, model = job.folder, job.settings.asking().model
    with open_work(folder.path) as work:
        batches = read_batches(work)
        spent_usd = usd_spent(work)
    alike = [each for each in batches if (each.endpoint, each.model) == (client.address, model)]
    lacking = {name: words for batch in alike for name, words in batch.lacking.items()}
    asked.lacking = lacking
    records = CallRecords(job.settings.chat.known_prices(), PURPOSE, in_batch=True)
    admission = _Admission(
        records=records,
        budget=_budget(job, model, records, spent_usd, batches),
        most_tokens=most_enqueued_tokens(alike),
        n_tokens=sum(batch.n_tokens for batch in alike if batch.ended_at is None),
        asked=asked,
    )
    requests = admission.admitted(read_requests(wanted))
    for file in write_batch_files(requests, folder.batches, records, lacking):
        batch = Batch(
            batch_id=file.batch_id,
            endpoint=client.address,
            model=model,
            n_requests=len(file.hashes),
            n_tokens=file.n_tokens,
            most_usd=file.most_usd,
            lacking=lacking,
            prepared_at=now(),
        )
        with open_work(folder.path) as work:
            add_batch(work, batch, file.hashes)
        submit_recorded(folder, client, file.batch_id, may_exist=False)


def _budget(
    job: AskJob, model: str, records: CallRecords, spent_usd: Decimal, batches: Iterable[Batch]
) -> Budget | None:
    spending = job.spending
    if spending.limit_usd is None:
        return None
    held = usd_under_way([batch for batch in batches if batch.ended_at is None])
    return Budget(
        spending.limit_usd, [model], records.prices, spent_usd, held, spending.is_allowance
    )


@dataclass(slots=True)
class _Admission:
    """Which requests may be submitted now: the first ones, up to one for which there is no room.

    Attributes:
        records: says what requests cost.
        budget: with what batches under way may cost reserved; None for no limit.
        most_tokens: that the provider lets wait; None where that is not known.
        n_tokens: that wait there.
        asked: what is held back is noted in it.
    """

    records: CallRecords
    budget: Budget | None
    most_tokens: int | None
    n_tokens: int
    asked: Asked

    def admitted(self, requests: Iterator[RecordedRequest]) -> Iterator[RecordedRequest]:
        for request in requests:
            try:
                obstacle = self._obstacle(request)
            except BudgetSpent as spent:
                self.asked.stopped = spent
                return
            if obstacle is not None:
                self.asked.held_back[obstacle] += 1 + sum(1 for _ in requests)
                return
            yield request

    def _obstacle(self, request: RecordedRequest) -> str | None:
        n_tokens = self.n_tokens + estimated_tokens(request.request)
        # One alone is always tried, or nothing would ever go on.
        if self.most_tokens is not None and self.n_tokens and n_tokens > self.most_tokens:
            return f"the provider takes about {self.most_tokens:,} tokens at a time"
        if self.budget is not None and not self.budget.reserve(self.records.most_usd(request)):
            return "the batches under way may cost all that the budget leaves"
        self.n_tokens = n_tokens
        return None
