"""A language model served by vLLM as simulator: it reads windows with slots, one call a window.

vLLM tells, where it is asked (`prompt_logprobs`), which tokens were likeliest at each place of a
prompt. The prompt ends with the model's own answer, a filler in every slot, so that one call which
writes a single token gives all ratings of a window. Slots are found by reading the prompt back from
the tokens it was made of: its last lines, by their numbers.

Of at most twenty tokens the probability is known (vLLM's `--max-logprobs` unless set otherwise).
A digit that is not among them counts as impossible; a slot without any digit has no rating, and
its window has failed. vLLM reads such a prompt anew from its beginning, whatever it has cached
(vLLM pull request 28194), and no other endpoint is known to offer this.
"""

from __future__ import annotations

import asyncio
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ..label.call_records import reason_of
from ..label.chat import ChatReply, ChatRequest, Message, TokenLogprob
from ..label.labelling import NO_REPLY, Ask
from ..store.records import Call, Label, Windows
from .rating_calls import Rated, simulated_from, why_unread
from .simulators import Simulated
from .teacher_forced import (
    DIGITS,
    FILLER,
    WindowText,
    filled_answer,
    read_slots,
    slot_messages,
    texts_of,
)
from .token_ratings import HIGHEST

NAME = "vllm"
NOT_OFFERED = (
    f"{NO_REPLY}: the endpoint gives no log probabilities of the prompt (prompt_logprobs), "
    "as vLLM does"
)
NOT_FOUND = "the lines to be rated are not found in the prompt as the endpoint read it"

# vLLM gives so many and no more, unless it is started with a larger --max-logprobs.
_PROMPT_LOGPROBS = 20
# The instructions, the same for all windows.
_N_STATIC = 1


@dataclass(frozen=True, slots=True)
class VllmSimulator:
    """Predicts activations by a model that vLLM serves; `name` says which.

    Attributes:
        model: its name at the endpoint.
        ask: gives the call of a request; of its log probabilities `slot_digits_of` is kept.
        run: runs a coroutine to its end and gives its result; calls may be made side by side.
        token_text: spells a token of the subject model.
        prefix_of: the tokens before a window, by its id.
    """

    model: str
    ask: Ask
    run: Callable[[Coroutine[Any, Any, list[Rated | str]]], list[Rated | str]]
    token_text: Callable[[int], str]
    prefix_of: Callable[[int], Sequence[int]]
    depends_on_order: bool = False
    full_scale: float | None = float(HIGHEST)

    @property
    def name(self) -> str:
        """What its scores are stored under: two models are two judges."""
        return f"{NAME}/{self.model}"

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """The ratings of each token of the windows."""
        texts = texts_of(windows, self.token_text, self.prefix_of)
        outcomes = self.run(self._rate_all(label.text or "", texts))
        return simulated_from(outcomes, windows.token_ids.shape)

    async def _rate_all(self, label: str, texts: Sequence[WindowText]) -> list[Rated | str]:
        return await asyncio.gather(*(self._rate(label, text) for text in texts))

    async def _rate(self, label: str, text: WindowText) -> Rated | str:
        call = await self.ask(slot_request(self.model, label, text), _N_STATIC)
        return rated_from(call, len(text.tokens))


def slot_request(model: str, label: str, text: WindowText) -> ChatRequest:
    """What is sent to have a window rated."""
    return ChatRequest(
        messages=(
            *slot_messages(label, text.before),
            Message("assistant", filled_answer(text.tokens)),
        ),
        model=model,
        temperature=0.0,
        max_tokens=1,
        continues_last=True,
        prompt_logprobs=_PROMPT_LOGPROBS,
    )


def rated_from(call: Call, n_tokens: int) -> Rated | str:
    """The ratings in a call of which `slot_digits_of` was kept, or why there are none."""
    if call.reply is None and reason_of(call) == "no_prompt_logprobs":
        return NOT_OFFERED
    if (why := why_unread(call)) is not None:
        return why
    kept = call.reply.get("logprobs")
    if kept is None:
        return NOT_OFFERED
    if [number for number, _ in kept] != list(range(1, n_tokens + 1)):
        return NOT_FOUND
    logprobs = np.full((n_tokens, len(DIGITS)), -np.inf)
    for number, options in kept:
        for digit, logprob in options:
            logprobs[number - 1, digit] = logprob
    return read_slots(logprobs)


def slot_digits_of(reply: ChatReply) -> list[Any] | None:
    """Of a prompt's log probabilities those that ratings are made of, to be stored with the reply.

    Returns:
        For each slot of the prompt's last lines its number, from 1, and [digit, log probability]
        pairs; none where the lines are not found. None where the reply has no log probabilities
        of the prompt.
    """
    if reply.prompt_logprobs is None:
        return None
    texts = ["" if each is None else each.token for each in reply.prompt_logprobs]
    starts = [0, *accumulate(map(len, texts))]
    found: list[Any] = []
    for number, place in enumerate(_slot_places("".join(texts)), start=1):
        at = bisect_right(starts, place) - 1
        token = reply.prompt_logprobs[at]
        assert token is not None, "a token with a text"
        found.append([number, _digits_at(token, place - starts[at])])
    return found


def _slot_places(prompt: str) -> list[int]:
    """Where the fillers of a prompt's last lines stand, in the order of the lines.

    Empty where these are not numbered from 1 without a gap. Whatever stands before the first
    number, in its line too, belongs to the chat template. Tokens spelled by themselves may have
    lost their spaces, so what they say is not compared.
    """
    end = prompt.rfind("\t" + FILLER) + len("\t" + FILLER)
    places: list[int] = []
    number: int | None = None
    while end > 0 and number != 1:
        start = prompt.rfind("\n", 0, end) + 1
        head, *more = prompt[start:end].rsplit("\t", 2)
        last = re.search(r"[0-9]+$", head)
        if last is None or len(more) != 2 or more[1] != FILLER:
            return []
        if number is None:
            number = int(last[0])
        else:
            number -= 1
            is_next = head.endswith("1") if number == 1 else head == str(number)
            if not is_next:
                return []
        places.append(end - len(FILLER))
        end = start - 1
    return places[::-1] if number == 1 else []


def _digits_at(token: TokenLogprob, place: int) -> list[list[float]]:
    """Which digits might have stood at a place of a token, and the log probability of each.

    Where the tokenizer joins the filler to the line break behind it, a digit may come without: the
    break is then a token of its own. So white space behind a digit makes no difference.
    """
    before = re.escape(token.token[:place])
    found: dict[int, float] = {}
    for text, logprob in token.alternatives:
        digit = re.fullmatch(rf"{before}([0-9])\s*", text)
        if digit is not None and math.isfinite(logprob):
            value = int(digit[1])
            found[value] = float(np.logaddexp(found.get(value, -np.inf), logprob))
    return [[digit, logprob] for digit, logprob in sorted(found.items())]
