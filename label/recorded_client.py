"""Asking a model on the record: each call is in the journal before its reply is used.

What was asked before is not asked again, and what a call may cost is reserved before it is made.
Left out: what the replies mean, and how they come into the database.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..store.errors import EndpointRefuses, RequestGivenUp
from ..store.journal import Journal
from ..store.records import Call
from .budget import Budget
from .chat import ChatClient, ChatReply, ChatRequest
from .pricing import Prices, cost_of_call

if TYPE_CHECKING:
    from ..store.known_calls import KnownCalls

# What separates a call's reason, a word of `chat.Reason`, from the words that follow it.
_AFTER_REASON = ": "


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
        prices: of models.
        purpose: what the calls are for, in a word.
        budget: what they may cost; None for no limit.
        tally: what was asked here.
    """

    client: ChatClient
    known: KnownCalls
    journal: Journal
    prices: Prices
    purpose: str
    budget: Budget | None = None
    tally: Tally = field(default_factory=Tally)
    _under_way: dict[str, asyncio.Future[Call]] = field(default_factory=dict)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, request: ChatRequest, n_static: int) -> Call:
        """What came of a request: a reply, or the error that it ended with.

        Args:
            request: what is asked.
            n_static: how many of its first messages other requests share.

        Raises:
            EndpointRefuses: no request will be answered.
            BudgetSpent: this one might cost more than there is left.
            StoreError: the disk refuses the journal.
        """
        name = request.request_hash
        if name in self.known:
            self.tally.n_known += 1
            return await asyncio.to_thread(self.known.find, name)
        # Features that show the same have the same request; it is sent once.
        if (under_way := self._under_way.get(name)) is not None:
            return await asyncio.shield(under_way)
        answered: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self._under_way[name] = answered
        try:
            call = await self._make(request, n_static)
        except BaseException as error:
            answered.set_exception(error)
            answered.exception()  # seen here: whoever waits for it gets it as well
            raise
        else:
            answered.set_result(call)
            return call
        finally:
            del self._under_way[name]

    async def _make(self, request: ChatRequest, n_static: int) -> Call:
        most_usd = await self._reserve(request)
        usd: Decimal | None = None  # of a call that is broken off nobody knows
        try:
            try:
                reply = await self.client.complete(request)
            except RequestGivenUp as error:
                call = self._call_without_reply(request, error, n_static)
            except EndpointRefuses:
                usd = Decimal(0)
                raise
            else:
                call = self._call(request, reply, n_static)
            self.journal.append(call)
            self.known.add(call)
            self.tally.add(call)
            usd = call.usd
            return call
        finally:
            if self.budget is not None:
                self.budget.settle(most_usd, usd)
                self._settled.set()

    async def _reserve(self, request: ChatRequest) -> Decimal:
        if self.budget is None:
            return Decimal(0)
        # No tokenizer makes more tokens than bytes, but for the marks between messages.
        n_bytes = sum(len(each.content.encode()) + 16 for each in request.messages)
        most_usd = self.prices[request.model].most(n_bytes, request.max_tokens)
        while not self.budget.reserve(most_usd):
            self._settled.clear()
            await self._settled.wait()
        return most_usd

    def _call(self, request: ChatRequest, reply: ChatReply, n_static: int) -> Call:
        content = {
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "refusal": reply.refusal,
            "model": reply.model,
        }
        used = (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
        return self._record(request, n_static, content, None, used, reply.seconds, reply.attempts)

    def _call_without_reply(
        self, request: ChatRequest, error: RequestGivenUp, n_static: int
    ) -> Call:
        words = f"{error.reason}{_AFTER_REASON}{error.found or error.what}"
        used = (error.prompt_tokens, error.cached_tokens, error.completion_tokens)
        return self._record(request, n_static, None, words, used, error.seconds, error.attempts)

    def _record(
        self,
        request: ChatRequest,
        n_static: int,
        reply: Any,
        error: str | None,
        used: tuple[int | None, int | None, int | None],
        seconds: float,
        attempts: int,
    ) -> Call:
        prompt_tokens, cached_tokens, completion_tokens = used
        return Call(
            request_hash=request.request_hash,
            purpose=self.purpose,
            model=request.model,
            request=request.as_dict(),
            n_static=n_static,
            reply=reply,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
            usd=cost_of_call(
                self.prices, request.model, prompt_tokens, cached_tokens, completion_tokens
            ),
            seconds=seconds,
            attempts=attempts,
            error=error,
            created_at=datetime.now(UTC),
            draw=request.draw,
        )


def reason_of(call: Call) -> str | None:
    """Why a call has no reply, in a word of `chat.Reason`; None where it has one."""
    return None if call.error is None else call.error.partition(_AFTER_REASON)[0]
