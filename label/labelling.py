"""From a feature's prompt to its label by way of a model: ask, read, have it repaired once.

The same prompt and the same replies give the same label, so that a label can be derived again
from the record (`flows/replay.py`) and a run that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..store.records import Call, FeatureId, Label
from .call_records import reason_of
from .chat import ChatRequest, Message
from .label_reply import BadReply, LabelReply, parse_reply, repair_messages
from .prompts import NoPrompt, RenderedPrompt, drop_to_fit, estimate_tokens

DECLINED = "the model declined to answer"
WITHHELD = "the endpoint's content filter withheld the reply"
CUT_OFF = "the reply was longer than it may be"
NO_REPLY = "no reply from the model"
"""Such failures may pass: `explain --retry-failed` asks again."""
# The system message, the same for all features.
_N_STATIC = 1

Ask = Callable[[ChatRequest, int], Awaitable[Call]]
"""Gives the call of a request, of which so many of the first messages are shared with others."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a model is asked.

    Attributes:
        model: its name at the endpoint.
        temperature: 0 for the likeliest reply.
        max_reply_tokens: a reply is cut off after so many.
        context_tokens: what the model takes, prompt and reply together; None where not known.
    """

    model: str
    temperature: float
    max_reply_tokens: int
    context_tokens: int | None = None

    def fitted(self, prompt: RenderedPrompt | NoPrompt) -> RenderedPrompt | NoPrompt:
        """The prompt without the contexts that the model is known not to take."""
        if isinstance(prompt, NoPrompt) or self.context_tokens is None:
            return prompt
        return drop_to_fit(prompt, self.context_tokens - self.max_reply_tokens)

    def request(self, messages: tuple[Message, ...], draw: int) -> ChatRequest:
        """The request for a label."""
        return ChatRequest(
            messages=messages,
            model=self.model,
            temperature=self.temperature,
            max_tokens=self.max_reply_tokens,
            reply_schema=_reply_schema(),
            draw=draw,
        )


@cache  # a millisecond to work out
def _reply_schema() -> dict[str, Any]:
    return LabelReply.model_json_schema()


async def write_label(
    feature_id: FeatureId,
    explainer: str,
    prompt: RenderedPrompt | NoPrompt,
    prompt_version: str,
    asking: Asking,
    draw: int,
    ask: Ask,
) -> Label:
    """A label, or the record of why there is none.

    Contexts are left out from the end until the prompt fits, before it is sent where it is known
    what the model takes, else whenever the endpoint says that it was too long.
    """
    nothing = Label(
        feature_id=feature_id,
        text=None,
        explanation=None,
        explainer=explainer,
        prompt_version=prompt_version,
        window_ids=(),
        model=asking.model,
        draw=draw,
        status="failed",
    )
    prompt = asking.fitted(prompt)
    while True:
        if isinstance(prompt, NoPrompt):
            return replace(nothing, reason=prompt.reason)
        nothing = replace(
            nothing, window_ids=prompt.window_ids, n_dropped_contexts=prompt.n_dropped
        )
        request = asking.request(prompt.messages, draw)
        call = await ask(request, _N_STATIC)
        nothing = replace(nothing, request_hash=request.request_hash)
        if reason_of(call) != "context_too_long":
            break
        prompt = _shorter(prompt)
    if call.reply is None:
        return replace(nothing, reason=_no_reply(call))
    found = read_label(call)
    if isinstance(found, BadReply) and found.reason not in (DECLINED, WITHHELD):
        fault = found.reason
        repair = asking.request(repair_messages(prompt.messages, call.reply["text"], fault), draw)
        call = await ask(repair, _N_STATIC)
        nothing = replace(nothing, request_hash=repair.request_hash)
        if call.reply is None:
            return replace(nothing, reason=f"{fault}; then {_no_reply(call)}")
        found = read_label(call)
    if isinstance(found, BadReply):
        return replace(nothing, reason=found.reason)
    return replace(
        nothing,
        text=found.label,
        explanation=f"{found.explanation}\nNear miss: {found.near_miss}",
        status="done",
    )


def read_label(call: Call) -> LabelReply | BadReply:
    """What a call's reply comes to, from nothing but what is stored of it."""
    text, refusal = call.reply["text"], call.reply["refusal"]
    found = parse_reply(text)
    if isinstance(found, BadReply):
        if refusal:
            return BadReply(DECLINED)
        if call.reply["finish_reason"] == "content_filter":
            return BadReply(WITHHELD)
        if call.reply["finish_reason"] == "length":
            return BadReply(CUT_OFF)
    return found


def _shorter(prompt: RenderedPrompt) -> RenderedPrompt | NoPrompt:
    """The prompt with three quarters of what its contexts take."""
    shown = sum(estimate_tokens(block.text) for block in prompt.blocks)
    return drop_to_fit(prompt, prompt.estimated_tokens - max(1, shown // 4))


def _no_reply(call: Call) -> str:
    reason = reason_of(call) or "unknown"
    return f"{NO_REPLY}: {reason.replace('_', ' ')}"
