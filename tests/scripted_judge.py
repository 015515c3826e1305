"""A judge that answers questions about windows by a rule, and windows to ask it about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scopenote.evaluate.window_questions import Asker
from scopenote.label.chat import ChatRequest
from scopenote.store.near_misses import NearMisses
from scopenote.store.records import Call, FeatureContexts, Label, Stratum

from .made_up_calls import make_call
from .planted_feature import FEATURE, make_contexts, make_stratum

# The feature is at " lion"; its neighbours are at the other animals.
WORDS = {
    1: " lion",
    2: " tiger",
    3: " bear",
    **{4 + i: f" word{i}" for i in range(20)},
    24: "⟪",
    25: "⟫",
    26: "⟦window 1⟧",
}
ANIMALS = (" lion", " tiger", " bear")
LABEL = Label(FEATURE, "lions", None, "highlighted", "1", (1, 2), model="m")
T = 8

Answer = Callable[[ChatRequest], Any]


def asker(answer: Answer, asked: list[ChatRequest] | None = None) -> Asker:
    """Gives what `answer` says: a text, None where no reply came, or a reply as it is stored."""

    async def ask(request: ChatRequest, n_static: int) -> Call:
        assert n_static == 1
        if asked is not None:
            asked.append(request)
        said = answer(request)
        if said is None:
            error = "timeout: no complete answer, after 8 attempts"
            return make_call(0, request_hash=request.request_hash, reply=None, error=error)
        usual = {"finish_reason": "stop", "refusal": None, "model": "m", "logprobs": None}
        reply = {**usual, **(said if isinstance(said, dict) else {"text": said})}
        return make_call(0, request_hash=request.request_hash, reply=reply)

    return Asker("chat/m", "m", ask, lambda replies: asyncio.run(replies), WORDS.__getitem__)


def windows_in(request: ChatRequest) -> list[str]:
    """The windows that a request shows, in its order."""
    shown = request.messages[1].content.split("⟦end of windows⟧")[0]
    return [part.split("⟧\n", 1)[1].removesuffix("\n") for part in shown.split("⟦window ")[1:]]


def by_rule(says: Callable[[str], bool]) -> Answer:
    """One at the windows of which this is true."""

    def answer(request: ChatRequest) -> str:
        said = [f"{n}\t{int(says(text))}" for n, text in enumerate(windows_in(request), start=1)]
        return "\n".join(said)

    return answer


def stratum(
    n: int, firing: Sequence[int], fires: bool, first_id: int, population: int | None = None
) -> Stratum:
    """Windows of eight words, each with one of these tokens somewhere (none for no token)."""
    rng = np.random.default_rng(first_id)
    texts = rng.integers(4, 24, (n, T))
    truth = np.zeros((n, T))
    for row in range(n if firing else 0):
        place = int(rng.integers(0, T))
        texts[row, place] = firing[row % len(firing)]
        truth[row, place] = 3.0 * fires
    return make_stratum(
        texts.tolist(), truth.tolist(), first_id=first_id, n_tokens=T, population=population
    )


def contexts(n_active: int = 30, n_silent: int = 40) -> tuple[FeatureContexts, FeatureContexts]:
    """Explain and score contexts of the feature at " lion"."""
    nothing = make_stratum([], n_tokens=T)
    explain = make_contexts(
        stratum(12, [1], True, 10_000, 300), stratum(20, [], False, 20_000, 5000), nothing
    )
    score = make_contexts(
        stratum(n_active, [1], True, 30_000, 300),
        stratum(n_silent, [], False, 40_000, 5000),
        nothing,
        split="score",
    )
    return explain, score


def near_misses(n: int = 30) -> NearMisses:
    """Windows with other animals."""
    windows = stratum(n, [2, 3], False, 50_000).windows
    return NearMisses(windows, np.arange(n) % 2)
