"""A language model as simulator: it rates every token of a window from the label alone.

One call a window, so that no window's ratings depend on another's. Tokens that an answer leaves
out are asked for once more; if some still have no rating, the window has failed, with its reason,
and no zero stands in for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..label.chat import ChatRequest, Message
from ..label.labelling import Ask
from ..store.records import Call, Label, Windows
from .rating_calls import Rated, simulated_from, stored_digits, why_unread
from .simulators import Simulated
from .token_ratings import HIGHEST, Ratings, missing_messages, rating_messages, read_ratings

NAME = "chat"
NO_RATING = "some tokens have no rating"
# What a line of an answer takes at most, in tokens, and room for a few words.
_TOKENS_A_LINE, _TOKENS_AROUND = 6, 60
_TOP_LOGPROBS = 10


@dataclass(frozen=True, slots=True)
class ChatSimulator:
    """Predicts activations by asking a model; `name` says which.

    Attributes:
        model: its name at the endpoint.
        ask: gives the call of a request.
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
        outcomes = self.run(self._rate_all(label, windows))
        return simulated_from(outcomes, windows.token_ids.shape)

    async def _rate_all(self, label: Label, windows: Windows) -> list[Rated | str]:
        return await asyncio.gather(
            *(self._rate(label.text or "", windows, row) for row in range(len(windows)))
        )

    async def _rate(self, label: str, windows: Windows, row: int) -> Rated | str:
        token_ids = windows.token_ids[row][windows.token_ids[row] >= 0].tolist()
        prefix = self.prefix_of(int(windows.window_id[row]))
        messages = rating_messages(
            label, [*map(self.token_text, prefix)], [*map(self.token_text, token_ids)]
        )
        n_tokens = len(token_ids)
        call = await self.ask(self._request(messages, n_tokens), 1)
        if (why := why_unread(call)) is not None:
            return why
        ratings = _ratings(call, n_tokens)
        missing = [n for n in range(1, n_tokens + 1) if n not in ratings.values]
        if missing:
            again = missing_messages(messages, call.reply["text"], missing)
            call = await self.ask(self._request(again, len(missing)), 1)
            if (why := why_unread(call)) is not None:
                return why
            ratings = _with_missing(ratings, _ratings(call, n_tokens), missing)
            if len(ratings.values) < n_tokens:
                return NO_RATING
        values = tuple(ratings.values[number] for number in range(1, n_tokens + 1))
        mass = sum(ratings.mass.values()) / len(ratings.mass) if ratings.mass else None
        return Rated(values, mass)

    def _request(self, messages: tuple[Message, ...], n_lines: int) -> ChatRequest:
        return ChatRequest(
            messages=messages,
            model=self.model,
            temperature=0.0,
            max_tokens=most_reply_tokens(n_lines),
            top_logprobs=_TOP_LOGPROBS,
        )


def most_reply_tokens(n_lines: int) -> int:
    """What an answer of so many ratings may take."""
    return _TOKENS_A_LINE * n_lines + _TOKENS_AROUND


def _ratings(call: Call, n_tokens: int) -> Ratings:
    return read_ratings(call.reply["text"], n_tokens, stored_digits(call))


def _with_missing(before: Ratings, more: Ratings, missing: Sequence[int]) -> Ratings:
    def merged(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
        return {**one, **{number: other[number] for number in missing if number in other}}

    return Ratings(
        merged(before.values, more.values),
        merged(before.mass, more.mass),
        before.n_unusable + more.n_unusable,
    )
