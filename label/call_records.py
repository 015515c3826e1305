"""Calls as the record keeps them: what a reply or a failure comes to, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ..store.errors import RequestGivenUp
from ..store.records import Call, RecordedRequest
from .chat import ChatReply, ChatRequest
from .pricing import Prices, cost_of_call
from .request_body import prompt_bytes

# What separates a call's reason, a word of `chat.Reason`, from the words that follow it.
_AFTER_REASON = ": "


def to_record(request: ChatRequest, n_static: int) -> RecordedRequest:
    """A request as it is recorded; so many of its first messages are shared with others."""
    return RecordedRequest(request.request_hash, request.as_dict(), n_static, request.draw)


@dataclass(frozen=True, slots=True)
class CallRecords:
    """Makes the calls of one purpose.

    Attributes:
        prices: of models.
        purpose: what the calls are for, in a word.
        in_batch: they are made at the price of a batch.
        kept_logprobs: what of a reply's log probabilities is kept; None for nothing.
    """

    prices: Prices
    purpose: str
    in_batch: bool = False
    kept_logprobs: Callable[[ChatReply], Any] | None = None

    def reply(self, request: RecordedRequest, reply: ChatReply) -> Call:
        """The call that a reply came to."""
        content: dict[str, Any] = {
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "refusal": reply.refusal,
            "model": reply.model,
        }
        if self.kept_logprobs is not None:
            content["logprobs"] = self.kept_logprobs(reply)
        used = (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens)
        return self.call(request, content, None, used, reply.seconds, reply.attempts)

    def failure(self, request: RecordedRequest, error: RequestGivenUp) -> Call:
        """The call to which no reply came that can be used."""
        words = f"{error.reason}{_AFTER_REASON}{error.found or error.what}"
        used = (error.prompt_tokens, error.cached_tokens, error.completion_tokens)
        return self.call(request, None, words, used, error.seconds, error.attempts)

    def most_usd(self, request: RecordedRequest) -> Decimal:
        """Dollars that a request cannot exceed.

        Raises:
            KeyError: its model has no price.
        """
        # No tokenizer makes more tokens than bytes, but for the marks between messages.
        messages = request.request["messages"]
        n_bytes = prompt_bytes(request.request) + 16 * len(messages)
        price = self.prices[request.model]
        return price.most(n_bytes, request.request["max_tokens"], self.in_batch)

    def call(
        self,
        request: RecordedRequest,
        reply: Any,
        error: str | None,
        used: tuple[int | None, int | None, int | None],
        seconds: float,
        attempts: int,
    ) -> Call:
        """The call that something came of; `used`: tokens of the prompt, cached, of the reply."""
        prompt_tokens, cached_tokens, completion_tokens = used
        return Call(
            request_hash=request.request_hash,
            purpose=self.purpose,
            model=request.model,
            request=request.request,
            n_static=request.n_static,
            reply=reply,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
            usd=cost_of_call(self.prices, request.model, *used, self.in_batch),
            seconds=seconds,
            attempts=attempts,
            error=error,
            created_at=datetime.now(UTC),
            draw=request.draw,
        )


def reason_of(call: Call) -> str | None:
    """Why a call has no reply, in a word of `chat.Reason`; None where it has one."""
    return None if call.error is None else call.error.partition(_AFTER_REASON)[0]
