"""An open line to a model that tasks of one process share, and what of it each task spends.

Every task journals its calls in a file of its own, which carries the name of its share: so
whoever goes on where a process was killed knows what it had asked and spent. Nothing here knows
Prefect or the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from ..label.call_records import CallRecords
from ..label.chat import ChatClient
from ..label.recorded_client import RecordedClient, Tally
from ..store.errors import ScopenoteError
from ..store.journal import Journal
from ..store.known_calls import KnownCalls
from ..store.records import Call, RecordedRequest
from .shares import Share, Spent


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What of a run's calls is known to a process; its tasks share it.

    Attributes:
        known: the calls made before.
        journal: the folder of those made now.
        in_batches: requests that batches are under way with.
        under_way: those that this process has sent and that are not answered yet.
    """

    known: KnownCalls
    journal: Path
    in_batches: Container[str] = frozenset()
    under_way: dict[str, asyncio.Future[Call]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SharedCalls:
    """The calls of one task, on its share.

    Attributes:
        client: asks, on the record.
        share: what it may spend.
    """

    client: RecordedClient
    share: Share

    def spent(self, stopped: ScopenoteError | None) -> Spent:
        """What the task has spent, and why it stopped early, where it did."""
        usd = self.client.tally.usd
        if self.client.budget is not None:
            usd = self.client.budget.spent_usd - self.share.gone_usd
        return Spent(usd, self.client.tally, stopped, dict(self.client.client.lacking))


@contextmanager
def calls_on(
    share: Share, client: ChatClient, model: str, records: CallRecords, record: CallRecord
) -> Iterator[SharedCalls]:
    """Asks a model on the record and on a share, for as long as the block lasts.

    Args:
        share: what may be spent.
        client: of the model.
        model: its name.
        records: makes the calls.
        record: of the run.
    """
    record.known.learn()
    tally = Tally()
    before_usd = Decimal(0)
    for call in record.known.learn_of(share.name):
        tally.add(call)
        before_usd += _cost(call, records, share)
    with Journal(record.journal, share.name) as journal:
        recorded = RecordedClient(
            client=client,
            known=record.known,
            journal=journal,
            records=records,
            budget=share.budget(model, records.prices, before_usd),
            in_batches=record.in_batches,
            tally=tally,
            allowance=share.allowance(tally.n_calls),
            under_way=record.under_way,
        )
        yield SharedCalls(recorded, share)
        recorded.wait_for_calls()


def _cost(call: Call, records: CallRecords, share: Share) -> Decimal:
    """What a call cost, and where that is not known what it may have cost."""
    if call.usd is not None:
        return call.usd
    if share.limit_usd is None:
        return Decimal(0)
    return records.most_usd(
        RecordedRequest(call.request_hash, call.request, call.n_static, call.draw)
    )
