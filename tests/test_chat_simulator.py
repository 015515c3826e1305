"""A model that rates windows: what it is asked, and that what it leaves out is a failure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scopenote.evaluate.chat_simulator import NO_RATING, ChatSimulator, Rated
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.metrics import HEADLINE
from scopenote.evaluate.score_label import score_label
from scopenote.evaluate.token_ratings import digits_of
from scopenote.label.chat import ChatReply, ChatRequest, TokenLogprob
from scopenote.label.labelling import DECLINED, NO_REPLY
from scopenote.store.records import Call, Label, Windows

from .made_up_calls import make_call
from .planted_feature import FEATURE, make_contexts, make_stratum

LABEL = Label(FEATURE, "the word import", None, "highlighted", "1", (1, 2), model="m")
WORDS = {1: " import", 2: " from", 3: " the", 4: "\n"}
Answer = Callable[[ChatRequest], str | None]


def rate(request: ChatRequest) -> str:
    """Nine at what the label names."""
    listed = request.messages[1].content.split("⟦tokens⟧\n")[1].split("⟦end")[0].splitlines()
    return "".join(f"{row.split(chr(9))[0]}\t{9 if 'import' in row else 0}\n" for row in listed)


def simulator(answer: Answer, asked: list[ChatRequest] | None = None) -> ChatSimulator:
    async def ask(request: ChatRequest, n_static: int) -> Call:
        if asked is not None:
            asked.append(request)
        text = answer(request)
        if text is None:
            error = "timeout: no complete answer, after 8 attempts"
            return make_call(0, request_hash=request.request_hash, reply=None, error=error)
        refusal = "I cannot." if text == "refused" else None
        reply = {
            "text": None if refusal else text,
            "finish_reason": "stop",
            "refusal": refusal,
            "model": "m",
            "logprobs": None,
        }
        return make_call(0, request_hash=request.request_hash, reply=reply)

    def run(rating: Any) -> list[Rated | str]:
        return asyncio.run(rating)

    return ChatSimulator("m", ask, run, WORDS.__getitem__, lambda window_id: (3, 2))


def windows(*texts: list[int]) -> Windows:
    return make_stratum([list(text) for text in texts], n_tokens=len(texts[0])).windows


def test_each_window_is_rated_in_a_call_of_its_own_token_by_token() -> None:
    asked: list[ChatRequest] = []
    simulated = simulator(rate, asked).simulate(LABEL, windows([1, 3, 1], [3, 4, 2], [2, 1, 3]))
    assert simulated.predicted.tolist() == [[9, 0, 9], [0, 0, 0], [0, 9, 0]]
    assert simulated.failures == {}
    assert len(asked) == 3
    assert all("⟦text before⟧\n the from\n" in each.messages[1].content for each in asked)
    assert {each.temperature for each in asked} == {0.0}
    assert {each.top_logprobs for each in asked} == {10}
    assert simulator(rate).name == "chat/m"


def test_padding_is_neither_asked_about_nor_rated() -> None:
    asked: list[ChatRequest] = []
    padded = make_stratum([[1, 3]], n_tokens=4).windows
    simulated = simulator(rate, asked).simulate(LABEL, padded)
    assert simulated.predicted.tolist() == [[9, 0, 0, 0]]
    assert "2\t the\n⟦end of tokens⟧" in asked[0].messages[1].content


def test_tokens_that_are_left_out_are_asked_for_once() -> None:
    def forgetful(request: ChatRequest) -> str:
        return "1\t9\n" if len(request.messages) == 2 else "2\t4\n3\t0\n"

    asked: list[ChatRequest] = []
    simulated = simulator(forgetful, asked).simulate(LABEL, windows([1, 3, 2]))
    assert simulated.predicted.tolist() == [[9, 4, 0]]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda request: "1\t9\n", NO_RATING),
        (lambda request: "nonsense", NO_RATING),
        (lambda request: "1\t12\n2\t0\n3\t0\n", NO_RATING),
        (lambda request: "refused", DECLINED),
        (lambda request: None, f"{NO_REPLY}: timeout"),
    ],
)
def test_a_window_without_all_ratings_has_failed_and_is_no_zero(
    answer: Answer, reason: str
) -> None:
    simulated = simulator(answer).simulate(LABEL, windows([1, 3, 2]))
    assert simulated.failures == {0: reason}


def test_a_planted_feature_scores_high_by_its_true_label_and_failures_are_left_out() -> None:
    draw = np.random.default_rng(0)
    texts = draw.integers(2, 5, (60, 8))
    texts[:30, 3] = 1
    truth = (texts == 1) * 5.0
    active = make_stratum(texts[:30].tolist(), truth[:30].tolist(), population=300, n_tokens=8)
    silent = make_stratum(texts[30:].tolist(), population=3000, first_id=900, n_tokens=8)
    score = make_contexts(active, silent, make_stratum([], n_tokens=8), split="score")
    explain = make_contexts(
        make_stratum(
            [[1, 2, 3, 3, 2, 2, 2, 2]], [[5.0, 0, 0, 0, 0, 0, 0, 0]], first_id=5000, n_tokens=8
        ),
        make_stratum([[2, 2, 2, 3, 3, 4, 4, 4]], population=10, first_id=6000, n_tokens=8),
        make_stratum([], n_tokens=8),
    )
    resamples = draw_resamples(0, 100)
    scored = score_label(LABEL, explain, score, simulator(rate), resamples)
    (headline,) = [each for each in scored.scores if each.metric == HEADLINE]
    assert headline.value == pytest.approx(1.0)
    assert headline.simulator == "chat/m"

    def sometimes(request: ChatRequest) -> str:
        return "nonsense" if "1\t the" in request.messages[1].content else rate(request)

    scored = score_label(LABEL, explain, score, simulator(sometimes), resamples)
    (headline,) = [each for each in scored.scores if each.metric == HEADLINE]
    assert headline.value == pytest.approx(1.0)
    assert headline.design["n_failed_windows"] > 5
    failed = [each for each in scored.simulations if each.status == "failed"]
    assert {each.reason for each in failed} == {NO_RATING}
    assert all(each.predicted is None for each in failed)


def test_stored_log_probabilities_give_the_value_and_the_mass() -> None:
    options = (("7", math.log(0.5)), ("3", math.log(0.3)))
    tokens = (TokenLogprob("1\t", 0.0, ()), TokenLogprob("7", math.log(0.5), options))
    reply = ChatReply("1\t7", "stop", None, tokens, 1, 0, 1, "m", 0.1, 1)

    async def ask(request: ChatRequest, n_static: int) -> Call:
        stored = {"text": "1\t7", "finish_reason": "stop", "refusal": None, "model": "m"}
        return make_call(0, reply={**stored, "logprobs": digits_of(reply)})

    chat = ChatSimulator("m", ask, asyncio.run, WORDS.__getitem__, lambda window_id: ())
    simulated = chat.simulate(LABEL, windows([1]))
    assert simulated.predicted[0, 0] == pytest.approx((3.5 + 0.9) / 0.8)
    assert simulated.captured_mass[0] == pytest.approx(0.8)
