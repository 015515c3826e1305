"""Bringing in what batches at a provider have come to, also those that a dead process left behind.

Each step finds what the one before it left: a batch that is only prepared is looked for at the
provider before it is submitted; one that is under way is asked after; the results of one that has
ended are read again until it is marked as ended, and what of them is known is skipped.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ..label.batch_client import BatchClient, BatchRefused
from ..label.batch_files import TOO_MUCH_ENQUEUED, requests_file
from ..label.batch_results import BatchResults, Leftover
from ..label.call_records import CallRecords
from ..label.provider_batch import ProviderBatch
from ..store.batch_record import (
    ANSWERED,
    NOT_COUNTED,
    Batch,
    batches_under_way,
    end_batch,
    note_state,
    rounds_before,
)
from ..store.database import Store, open_store, open_work, publish_if_behind
from ..store.errors import EndpointRefuses
from ..store.journal import Journal
from ..store.known_calls import KnownCalls
from ..store.request_files import RequestIndex
from .ask_job import PURPOSE, Asked, AskJob
from .batch_steps import remove_files, submit_recorded

GIVEN_UP = "given up"


def bring_in_batches(job: AskJob, asked: Asked) -> None:
    """Journals what all batches that have ended came to, and absorbs that.

    Why asking on would be in vain, where it would be, is noted in `asked.stopped`.

    Args:
        job: what is asked.
        asked: calls and notes are added.

    Raises:
        ConfigurationError: there is no key for an endpoint that has batches.
    """
    with open_work(job.folder.path) as work:
        under_way = batches_under_way(work)
    _remove_strays(job.folder.batches, [batch.batch_id for batch in under_way])
    if not under_way:
        return
    with open_store(job.folder.path) as store:
        records = CallRecords(job.settings.chat.known_prices(), PURPOSE, in_batch=True)
        by_endpoint = sorted(under_way, key=lambda batch: batch.endpoint)
        for endpoint, batches in groupby(by_endpoint, key=lambda batch: batch.endpoint):
            with job.settings.chat.batch_client(endpoint) as client:
                desk = _Desk(job, asked, client, records, store)
                try:
                    for batch in batches:
                        desk.bring_in(batch)
                except EndpointRefuses as refusal:
                    asked.stopped = asked.stopped or refusal
    job.absorb()
    # What has ended without any call is news as well.
    with open_work(job.folder.path) as work:
        publish_if_behind(work, job.folder.path)


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where the batches of one endpoint are brought in."""

    job: AskJob
    asked: Asked
    client: BatchClient
    records: CallRecords
    store: Store

    def bring_in(self, batch: Batch) -> None:
        file = requests_file(self.job.folder.batches, batch.batch_id)
        if not file.exists():
            nothing = Leftover(lacking=dict(batch.lacking))
            self._end(batch, GIVEN_UP, nothing, all_others=NOT_COUNTED)
            self.asked.notes.append(f"batch {batch.provider_id} is given up: {file} is gone")
            return
        at_provider = self._at_provider(batch, file)
        if at_provider.state != batch.state:
            with open_work(self.job.folder.path) as work:
                note_state(work, batch.batch_id, at_provider.provider_id, at_provider.state)
        if at_provider.has_ended:
            self._settle(batch, at_provider, file)

    def _at_provider(self, batch: Batch, file: Path) -> ProviderBatch:
        if batch.provider_id is None:
            folder = self.job.folder
            return submit_recorded(folder, self.client, batch.batch_id, may_exist=True)
        try:
            return self.client.retrieve(batch.provider_id)
        except BatchRefused as refusal:
            raise replace(
                refusal,
                what="the provider does not give a batch that is under way",
                where=f"batch {batch.provider_id} at {self.client.address}",
                mend="set OPENAI_API_KEY to a key of the project that submitted it; if the batch "
                f"is gone for good, remove {file}, and its requests are sent anew",
            ) from None

    def _settle(self, batch: Batch, at_provider: ProviderBatch, file: Path) -> None:
        """Journals the results; only when they are on disk the batch counts as ended."""
        folder = self.job.folder
        with open_work(folder.path) as work:
            rounds = rounds_before(work, batch.batch_id)
        # Nobody asks for what is in a batch: failures since then are those of an earlier reading.
        known = KnownCalls(
            self.store, folder.journal, replies_only=True, failures_since=batch.prepared_at
        )
        has_failed = at_provider.state == "failed"
        with RequestIndex(file) as requests, Journal(folder.journal) as journal:
            results = BatchResults(
                requests=requests,
                records=self.records,
                known=known,
                journal=journal,
                tally=self.asked.tally,
                rounds_before=rounds,
                lacking=batch.lacking,
                seconds=at_provider.seconds,
                where=f"batch {at_provider.provider_id} at {self.client.address}, "
                f"model {batch.model}",
            )
            for number, name in enumerate(at_provider.files):
                there = folder.batches / f"{batch.batch_id}.results-{number}.jsonl"
                if self.client.download(name, there):
                    results.read(there)
            ending = f"the batch was {at_provider.state} without a word on it"
            leftover = results.settle(ending, was_tried=not has_failed)
        reason = None
        if has_failed:
            reason = f"{at_provider.error_code}: {at_provider.error}"
        self._end(batch, at_provider.state, leftover, reason=reason)
        self._say(batch, at_provider, leftover)

    def _end(
        self,
        batch: Batch,
        state: str,
        leftover: Leftover,
        all_others: str = ANSWERED,
        reason: str | None = None,
    ) -> None:
        with open_work(self.job.folder.path) as work:
            end_batch(
                work,
                batch.batch_id,
                state,
                leftover.unanswered,
                leftover.not_counted,
                leftover.lacking,
                reason,
                all_others,
            )
        remove_files(self.job.folder.batches, batch.batch_id)

    def _say(self, batch: Batch, at_provider: ProviderBatch, leftover: Leftover) -> None:
        n_left = len(leftover.unanswered) + len(leftover.not_counted)
        if n_left:
            self.asked.notes.append(
                f"batch {at_provider.provider_id} {_PHRASES.get(at_provider.state, 'has ended')} "
                f"with {n_left:,} of {batch.n_requests:,} requests unanswered"
            )
        refusal = leftover.refusal
        if at_provider.state == "failed" and at_provider.error_code != TOO_MUCH_ENQUEUED:
            refusal = refusal or EndpointRefuses(
                "the provider refused a batch as a whole",
                where=f"batch {at_provider.provider_id} at {self.client.address}",
                found=f"{at_provider.error_code}: {at_provider.error}",
                mend="mend what it names, then give the command again; nothing of it was paid for",
            )
        self.asked.stopped = self.asked.stopped or refusal


_PHRASES = {"expired": "expired", "cancelled": "was cancelled", "failed": "failed"}


def _remove_strays(folder: Path, kept: Collection[str]) -> None:
    """Removes what a process that died had written and not yet recorded."""
    for path in folder.glob("*.jsonl*"):
        if not any(batch_id in path.name for batch_id in kept):
            path.unlink()
