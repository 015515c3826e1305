"""Asking a model on the record: each call is in the journal before its reply is used.

What was asked before is not asked again, and what a call may cost is reserved before it is made.
Left out: what the replies mean, and how they come into the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass, field, fields
from decimal import Decimal
from threading import Condition
from typing import TYPE_CHECKING

from ..store.errors import AllowanceSpent, EndpointRefuses, NotYetAnswered, RequestGivenUp
from ..store.journal import Journal
from ..store.records import Call, RecordedRequest
from ..store.request_files import RequestFile
from .budget import Allowance, Budget
from .call_records import CallRecords, to_record
from .chat import ChatClient, ChatRequest

if TYPE_CHECKING:
    from ..store.known_calls import KnownCalls


@dataclass(slots=True)
class Tally:
    """What was asked in this process, in numbers.

    Attributes:
        n_calls: calls that were made.
        n_known: requests that were not sent because their calls were on record.
        prompt_tokens, completion_tokens: as far as the endpoint said.
        usd: the sum of the prices that are known.
        n_unpriced: calls of unknown price.
    """

    n_calls: int = 0
    n_known: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: Decimal = Decimal(0)
    n_unpriced: int = 0

    def add_all(self, other: Tally) -> None:
        """Counts what another has counted."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def add(self, call: Call) -> None:
        """Counts a call."""
        self.n_calls += 1
        self.prompt_tokens += call.prompt_tokens or 0
        self.completion_tokens += call.completion_tokens or 0
        self.n_unpriced += call.usd is None
        self.usd += call.usd or 0


@dataclass(slots=True)
class RecordedClient:
    """A chat client whose calls are on the record; for use in one event loop.

    Attributes:
        client: what answers.
        known: the calls made before.
        journal: where those made now go.
        records: makes them.
        budget: what they may cost; None for no limit.
        in_batches: hashes of requests that batches are under way with, which are not asked.
        tally: what was asked here.
        allowance: how many calls may be made, and until when.
        under_way: the requests that were sent and not answered yet; others may share it.
    """

    client: ChatClient
    known: KnownCalls
    journal: Journal
    records: CallRecords
    budget: Budget | None = None
    in_batches: Container[str] = frozenset()
    tally: Tally = field(default_factory=Tally)
    allowance: Allowance = field(default_factory=Allowance)
    under_way: dict[str, asyncio.Future[Call]] = field(default_factory=dict)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _n_sent: int = 0
    _all_ended: Condition = field(default_factory=Condition)

    async def ask(self, request: ChatRequest, n_static: int) -> Call:
        """What came of a request: a reply, or the error that it ended with.

        Args:
            request: what is asked.
            n_static: how many of its first messages other requests share.

        Raises:
            NotYetAnswered: it is in a batch under way.
            EndpointRefuses: no request will be answered.
            BudgetSpent: this one might cost more than there is left.
            StoreError: the disk refuses the journal.
        """
        name = request.request_hash
        # First of all: an older failure is about to be replaced.
        if name in self.in_batches:
            raise NotYetAnswered("a batch is under way with this request", where=name)
        if name in self.known:
            self.tally.n_known += 1
            return await asyncio.to_thread(self.known.find, name)
        # Features that show the same have the same request; it is sent once.
        if (under_way := self.under_way.get(name)) is not None:
            return await asyncio.shield(under_way)
        answered: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self.under_way[name] = answered
        try:
            call = await self._make(request, to_record(request, n_static))
        except BaseException as error:
            answered.set_exception(error)
            answered.exception()  # seen here: whoever waits for it gets it as well
            raise
        else:
            answered.set_result(call)
            return call
        finally:
            del self.under_way[name]

    async def _make(self, request: ChatRequest, recorded: RecordedRequest) -> Call:
        most_usd = await self._reserve(recorded)
        try:
            self.allowance.take_call()
        except AllowanceSpent:
            self._settle(most_usd, Decimal(0))
            raise
        usd: Decimal | None = None  # of a call that is broken off nobody knows
        self._count_sent(1)
        try:
            try:
                reply = await self.client.complete(request)
            except RequestGivenUp as error:
                call = self.records.failure(recorded, error)
            except EndpointRefuses:
                usd = Decimal(0)
                raise
            else:
                call = self.records.reply(recorded, reply)
            self.known.add(call, self.journal.append(call))
            self.tally.add(call)
            usd = call.usd
            return call
        finally:
            self._settle(most_usd, usd)
            self._count_sent(-1)

    def wait_for_calls(self) -> None:
        """Waits in another thread than the loop's until no call is under way.

        Whoever asks many things at once hears of the first error while the others are on their way,
        and these will be paid for.
        """
        with self._all_ended:
            self._all_ended.wait_for(lambda: self._n_sent == 0)

    def _count_sent(self, n: int) -> None:
        with self._all_ended:
            self._n_sent += n
            self._all_ended.notify_all()

    def _settle(self, most_usd: Decimal, usd: Decimal | None) -> None:
        if self.budget is not None:
            self.budget.settle(most_usd, usd)
            self._settled.set()

    async def _reserve(self, request: RecordedRequest) -> Decimal:
        if self.budget is None:
            return Decimal(0)
        most_usd = self.records.most_usd(request)
        while not self.budget.reserve(most_usd):
            self._settled.clear()
            await self._settled.wait()
        return most_usd


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Answers requests from the record alone, and notes those that are not on it.

    Attributes:
        known: the calls made before.
        in_batches: hashes of requests that batches are under way with.
        wanted: where all others are written.
    """

    known: KnownCalls
    in_batches: Container[str]
    wanted: RequestFile

    async def ask(self, request: ChatRequest, n_static: int) -> Call:
        """What came of a request.

        Raises:
            NotYetAnswered: nothing so far.
        """
        name = request.request_hash
        if name not in self.in_batches:
            if name in self.known:
                return await asyncio.to_thread(self.known.find, name)
            self.wanted.add(to_record(request, n_static))
        raise NotYetAnswered("the answer comes with a batch", where=name)
