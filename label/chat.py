"""What is asked of a language model and what it answers, whatever serves it.

A client (`ChatClient`) takes a request and gives a reply or raises: `RequestGivenUp` where this
one request failed, `EndpointRefuses` where none will succeed. Left out: what prompts say, what a
reply means, what it costs and where it is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from ..store.records import content_hash

Reason = Literal[
    "rate_limited",  # 429 until patience ended
    "server_error",  # 5xx, 408 or 409 until patience ended
    "timeout",  # no answer in time, again and again
    "connection",  # refused, broken off, or no such host
    "web_page",  # HTML where JSON was expected
    "not_json",  # a damaged body
    "unreadable",  # JSON, but no chat completion
    "no_choices",  # a chat completion without any choice
    "no_prompt_logprobs",  # asked for, and refused or left out: few endpoints but vLLM have them
    "context_too_long",  # more than the model takes: a shorter prompt may do
    "bad_request",  # any other refusal of this one request
    "out_of_memory",  # more than the device that a local model runs on has room for
    "unanswered",  # the batches it was in expired, were cancelled or left it out
]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation with a model."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to be continued by a model.

    Attributes:
        messages: the conversation so far.
        model: its name at the endpoint.
        temperature: 0 for the likeliest continuation.
        max_tokens: the reply is cut off after so many.
        reply_schema: the JSON schema that the reply is to follow. An endpoint may only promise some
            JSON, or nothing: the prompt has to describe the form as well.
        top_logprobs: how many alternatives to give at each token of the reply, with log
            probabilities; None for no log probabilities at all.
        draw: a number that tells repeated draws of one request apart. It is not sent.
        continues_last: the last message is the assistant's own and unfinished: the reply goes on
            where it ends. vLLM offers this.
        prompt_logprobs: how many alternatives to give at each token of the prompt, with log
            probabilities; None for none at all. vLLM offers this, up to 20 where it is not told
            otherwise.
    """

    messages: tuple[Message, ...]
    model: str
    temperature: float
    max_tokens: int
    reply_schema: dict[str, Any] | None = None
    top_logprobs: int | None = None
    draw: int = 0
    continues_last: bool = False
    prompt_logprobs: int | None = None

    @cached_property  # asked for several times a call
    def request_hash(self) -> str:
        """A hash of all that decides the reply, the draw included."""
        # As text, since the order of a schema's properties is the order they are written in.
        schema = None if self.reply_schema is None else json.dumps(self.reply_schema)
        messages = [[message.role, message.content] for message in self.messages]
        limits = [float(self.temperature), self.max_tokens, self.top_logprobs]
        # What came later counts only where it is used: what is on record keeps its hash.
        more = self._offered_by_some()
        decisive = [self.model, messages, *limits, schema, self.draw, *([more] if more else [])]
        return content_hash(decisive)

    def as_dict(self) -> dict[str, Any]:
        """The request as it is stored: `messages`, and what else decides the reply."""
        content: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": each.role, "content": each.content} for each in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.reply_schema is not None:
            content["reply_schema"] = self.reply_schema
        if self.top_logprobs is not None:
            content["top_logprobs"] = self.top_logprobs
        return content | self._offered_by_some()

    def _offered_by_some(self) -> dict[str, Any]:
        """What few endpoints know, where it is asked for."""
        more: dict[str, Any] = {}
        if self.continues_last:
            more["continues_last"] = True
        if self.prompt_logprobs is not None:
            more["prompt_logprobs"] = self.prompt_logprobs
        return more


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of a reply, or of a prompt.

    Attributes:
        token: its text.
        logprob: its natural log probability.
        alternatives: the likeliest tokens in its place with their log probabilities, itself
            among them if it is one of them.
    """

    token: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What a model answered.

    Attributes:
        text: the reply; None where the model wrote nothing.
        finish_reason: why it ended: `stop`, `length`, `content_filter` or the endpoint's own word.
        refusal: what the model says where it declines to answer.
        logprobs: one for each token; None where none were asked for or the endpoint has none.
        prompt_tokens: what was read; None where the endpoint does not say.
        cached_tokens: those of them that were read from a cache, at a lower price.
        completion_tokens: what was written.
        model: the model's name as the endpoint states it.
        seconds: spent on sending and backing off, without waiting for its turn.
        attempts: how often the request was sent.
        prompt_logprobs: one for each token of the prompt, the prompt's own with those likelier in
            its place; None at its first token. None for all where none were asked for or the
            endpoint has none.
    """

    text: str | None
    finish_reason: str | None
    refusal: str | None
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    model: str
    seconds: float
    attempts: int
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None


class ChatClient(Protocol):
    """Whatever answers requests: an endpoint, or a model in this process."""

    @property
    def lacking(self) -> Mapping[str, str]:
        """What of requests turned out not to be offered, and what was said about that."""
        ...

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The model's reply.

        Raises:
            RequestGivenUp: this request has no usable reply.
            EndpointRefuses: no request will have one; the run should stop.
        """
        ...
