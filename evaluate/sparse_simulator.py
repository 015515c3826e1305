"""A language model as simulator of many windows a call: it names the tokens that are active.

Several times cheaper than a call a window (`chat_simulator`), because the instructions are sent
once for all windows of a call and silence takes a few tokens of the answer. The price: what is
predicted for a window may depend on the others of its call, so windows come shuffled; and only
tokens that the model names have a log probability, so that a faint doubt (a 1 at one in five)
is lost. Windows without a usable line are asked for once more, alone; then they have failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..label.call_records import reason_of
from ..label.chat import ChatRequest
from ..label.labelling import DECLINED, WITHHELD, Ask
from ..store.records import Call, Label, Windows
from .rating_calls import Rated, simulated_from, stored_digits, why_unread
from .simulators import Simulated
from .sparse_ratings import (
    ShownWindow,
    Unusable,
    estimated_prompt_tokens,
    most_sparse_reply_tokens,
    read_sparse,
    show_window,
    sparse_messages,
)
from .token_ratings import HIGHEST

NAME = "chat_sparse"
WINDOWS_PER_CALL = 16
# By an estimate that is rather too high: sixteen windows of 64 tokens with as many before them.
MOST_PROMPT_TOKENS = 8_000
_TOP_LOGPROBS = 10
# The instructions, the same for all windows.
_N_STATIC = 1


@dataclass(frozen=True, slots=True)
class SparseChatSimulator:
    """Predicts activations by asking a model about many windows at once; `name` says which.

    Attributes:
        model: its name at the endpoint.
        ask: gives the call of a request, of which `kept_digits` kept the log probabilities.
        run: runs a coroutine to its end and gives its result; calls may be made side by side.
        token_text: spells a token of the subject model.
        prefix_of: the tokens before a window, by its id.
        windows_per_call: at most.
        most_prompt_tokens: of a call of several windows, estimated.
    """

    model: str
    ask: Ask
    run: Callable[[Coroutine[Any, Any, list[Rated | str]]], list[Rated | str]]
    token_text: Callable[[int], str]
    prefix_of: Callable[[int], Sequence[int]]
    windows_per_call: int = WINDOWS_PER_CALL
    most_prompt_tokens: int = MOST_PROMPT_TOKENS
    depends_on_order: bool = True
    full_scale: float | None = float(HIGHEST)

    @property
    def name(self) -> str:
        """What its scores are stored under: two models are two judges."""
        return f"{NAME}/{self.model}"

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """The ratings of each token of the windows.

        A window's `captured_mass` is that of the digits that were written: it says nothing of the
        tokens that were left out, and of a window without ratings it is not known.
        """
        outcomes = self.run(self._rate_all(label.text or "", windows))
        return simulated_from(outcomes, windows.token_ids.shape)

    async def _rate_all(self, label: str, windows: Windows) -> list[Rated | str]:
        shown = [self._show(windows, row) for row in range(len(windows))]
        rated = await asyncio.gather(
            *(self._rate(label, part) for part in self._parts(label, shown))
        )
        return [outcome for part in rated for outcome in part]

    def _show(self, windows: Windows, row: int) -> ShownWindow:
        token_ids = windows.token_ids[row][windows.token_ids[row] >= 0].tolist()
        prefix = self.prefix_of(int(windows.window_id[row]))
        return show_window([*map(self.token_text, prefix)], [*map(self.token_text, token_ids)])

    def _parts(self, label: str, shown: Sequence[ShownWindow]) -> Iterator[list[ShownWindow]]:
        """The windows in their order, as many to a call as may be."""
        spare = room = self.most_prompt_tokens - estimated_prompt_tokens(label)
        part: list[ShownWindow] = []
        for window in shown:
            size = window.estimated_tokens
            if part and (size > spare or len(part) == self.windows_per_call):
                yield part
                part, spare = [], room
            part.append(window)
            spare -= size
        if part:
            yield part

    async def _rate(self, label: str, part: Sequence[ShownWindow]) -> list[Rated | str]:
        """What became of windows that share a call."""
        found = await self._read(label, part)
        again = [place for place, outcome in enumerate(found) if isinstance(outcome, Unusable)]
        if again:
            second = await self._read(label, [part[place] for place in again], is_again=True)
            for place, outcome in zip(again, second, strict=True):
                found[place] = outcome
        return [each.reason if isinstance(each, Unusable) else each for each in found]

    async def _read(
        self, label: str, part: Sequence[ShownWindow], is_again: bool = False
    ) -> list[Rated | Unusable | str]:
        call = await self.ask(self._request(label, part, is_again), _N_STATIC)
        why = why_unread(call)
        if why is None:
            digits = stored_digits(call)
            ended = call.reply["finish_reason"]
            n_tokens = [window.n_tokens for window in part]
            return [*read_sparse(call.reply["text"], n_tokens, ended, digits)]
        if len(part) > 1 and _may_be_one_window(call, why):
            middle = len(part) // 2
            halves = (part[:middle], part[middle:])
            found = await asyncio.gather(*(self._read(label, half, is_again) for half in halves))
            return [outcome for half in found for outcome in half]
        return [why] * len(part)

    def _request(self, label: str, part: Sequence[ShownWindow], is_again: bool) -> ChatRequest:
        return ChatRequest(
            messages=sparse_messages(label, part, is_again),
            model=self.model,
            temperature=0.0,
            max_tokens=most_sparse_reply_tokens(part),
            top_logprobs=_TOP_LOGPROBS,
        )


def _may_be_one_window(call: Call, why: str) -> bool:
    """Whether a call had no answer because of what it held, so that halves of it may have one."""
    return why in (DECLINED, WITHHELD) or reason_of(call) == "context_too_long"


def suspects(simulated: Simulated) -> Bool[np.ndarray, " W"]:
    """Windows with any activation predicted, and those that failed: nothing is known of them."""
    found: Bool[np.ndarray, " W"] = np.any(simulated.predicted > 0, axis=1)
    found[list(simulated.failures)] = True
    return found
