"""A model that rates many windows a call: what it does not say of a window is a failure."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.metrics import HEADLINE
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.score_label import score_label
from scopenote.evaluate.simulators import Simulated
from scopenote.evaluate.sparse_ratings import NO_LINE, NO_SUCH_TOKEN, kept_digits
from scopenote.evaluate.sparse_simulator import SparseChatSimulator, suspects
from scopenote.label.chat import ChatReply, ChatRequest, TokenLogprob
from scopenote.label.labelling import CUT_OFF, DECLINED, NO_REPLY, WITHHELD
from scopenote.store.records import Call, Label, Windows

from .made_up_calls import make_call
from .planted_feature import FEATURE, make_contexts, make_stratum

LABEL = Label(FEATURE, "the word import", None, "highlighted", "1", (1, 2), model="m")
WORDS = {1: " import", 2: " from", 3: " the", 4: "\n", 5: " bomb"}
Reply = dict[str, Any]
Answer = Callable[[ChatRequest], Reply | str]
TOO_LONG = "context_too_long: 9000 tokens"


def windows_of(request: ChatRequest) -> list[list[str]]:
    """The tokens of each window that is asked about, as they are listed."""
    shown = request.messages[1].content.split("⟦end of label⟧\n")[1].split("⟦end of")[0]
    parts = re.split(r"⟦(before )?window \d+⟧\n", shown)[1:]
    listed = zip(parts[::2], parts[1::2], strict=True)
    return [tokens.splitlines() for is_before, tokens in listed if not is_before]


def rate(request: ChatRequest) -> str:
    """Nine at what the label names."""
    rated = [
        " ".join(f"{at}=9" for at, word in enumerate(tokens, start=1) if "import" in word)
        for tokens in windows_of(request)
    ]
    return "\n".join(f"{number}\t{rest or '-'}" for number, rest in enumerate(rated, start=1))


def said(text: str | None = None, **more: Any) -> Reply:
    found = {"text": text, "finish_reason": "stop", "refusal": None, "model": "m"}
    return {**found, "logprobs": None, **more}


def simulator(
    answer: Answer, asked: list[ChatRequest] | None = None, **more: Any
) -> SparseChatSimulator:
    async def ask(request: ChatRequest, n_static: int) -> Call:
        if asked is not None:
            asked.append(request)
        given = answer(request)
        name = request.request_hash
        if isinstance(given, str) and given.partition(":")[0] in ("timeout", "context_too_long"):
            return make_call(0, request_hash=name, reply=None, error=given)
        return make_call(
            0, request_hash=name, reply=said(given) if isinstance(given, str) else given
        )

    def run(rating: Any) -> list[Rated | str]:
        return asyncio.run(rating)

    return SparseChatSimulator(
        "m", ask, run, WORDS.__getitem__, lambda window_id: (3, 2) if window_id % 2 else (), **more
    )


def windows(*texts: list[int], n_tokens: int = 3) -> Windows:
    return make_stratum([list(text) for text in texts], n_tokens=n_tokens).windows


def test_many_windows_share_a_call_and_each_has_its_own_ratings() -> None:
    asked: list[ChatRequest] = []
    texts = windows([1, 3, 1], [3, 4, 2], [2, 1], *[[3, 3, 3]] * 30)
    simulated = simulator(rate, asked).simulate(LABEL, texts)
    assert simulated.predicted[:3].tolist() == [[9, 0, 9], [0, 0, 0], [0, 9, 0]]
    assert not simulated.predicted[3:].any()
    assert simulated.failures == {}
    assert [len(windows_of(each)) for each in asked] == [16, 16, 1]
    assert "⟦before window 2⟧\n the from\n" in asked[0].messages[1].content
    assert {each.temperature for each in asked} == {0.0}
    assert {each.top_logprobs for each in asked} == {10}
    assert simulator(rate).name == "chat_sparse/m"
    assert simulator(rate).depends_on_order


def test_a_call_holds_no_more_than_its_size_allows_but_at_least_one_window() -> None:
    asked: list[ChatRequest] = []
    texts = windows(*[[1, 3, 1]] * 20)
    simulator(rate, asked, most_prompt_tokens=1400).simulate(LABEL, texts)
    sizes = [len(windows_of(each)) for each in asked]
    assert sum(sizes) == 20
    assert 1 < sizes[0] < 16
    asked.clear()
    simulator(rate, asked, most_prompt_tokens=1).simulate(LABEL, texts)
    assert [len(windows_of(each)) for each in asked] == [1] * 20


def test_windows_without_a_usable_line_are_asked_for_once_together() -> None:
    def forgetful(request: ChatRequest) -> str:
        n = len(windows_of(request))
        return rate(request) if n == 2 else "1\t1=9 3=9\n3\t7=1\n"

    asked: list[ChatRequest] = []
    texts = windows([1, 3, 1], [2, 1, 3], [2, 2, 1])
    simulated = simulator(forgetful, asked).simulate(LABEL, texts)
    assert simulated.predicted.tolist() == [[9, 0, 9], [0, 9, 0], [0, 0, 9]]
    assert simulated.failures == {}
    assert [len(windows_of(each)) for each in asked] == [3, 2]


def test_a_window_asked_for_again_alone_is_another_request() -> None:
    asked: list[ChatRequest] = []
    simulator(lambda request: "", asked).simulate(LABEL, windows([1, 3, 1]))
    assert len({each.request_hash for each in asked}) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda request: "nonsense", NO_LINE),
        (lambda request: "1\t4=9\n2\t4=9", NO_SUCH_TOKEN),
        (lambda request: said("1\t1=", finish_reason="length"), CUT_OFF),
        (lambda request: said(None, refusal="I cannot."), DECLINED),
        (lambda request: said("", finish_reason="content_filter"), WITHHELD),
        (lambda request: "timeout: no complete answer", f"{NO_REPLY}: timeout"),
        (lambda request: TOO_LONG, f"{NO_REPLY}: context too long"),
    ],
)
def test_windows_without_ratings_have_failed_and_are_no_zeros(answer: Answer, reason: str) -> None:
    simulated = simulator(answer).simulate(LABEL, windows([1, 3, 2], [3, 3, 3]))
    assert simulated.failures == {0: reason, 1: reason}


@pytest.mark.parametrize(
    "refused", [said(None, refusal="I cannot."), said("", finish_reason="content_filter"), TOO_LONG]
)
def test_what_one_window_is_refused_for_costs_no_other_its_ratings(refused: Reply | str) -> None:
    def squeamish(request: ChatRequest) -> Reply | str:
        return refused if "bomb" in request.messages[1].content else rate(request)

    asked: list[ChatRequest] = []
    texts = windows(*[[1, 3, 3]] * 9, [5, 1, 3], *[[3, 1, 3]] * 6)
    simulated = simulator(squeamish, asked).simulate(LABEL, texts)
    assert set(simulated.failures) == {9}
    assert (simulated.predicted.sum(axis=1) == 9).sum() == 15
    assert len(asked) == 9  # 16, then 8, 4, 2 and 1, each twice


def test_no_reply_for_another_reason_is_not_asked_again_in_parts() -> None:
    asked: list[ChatRequest] = []
    texts = windows(*[[1, 3, 3]] * 8)
    simulator(lambda request: "timeout: none", asked).simulate(LABEL, texts)
    assert len(asked) == 1


def test_stored_log_probabilities_give_the_value_and_the_mass() -> None:
    options = (("7", math.log(0.5)), ("3", math.log(0.3)))
    text = "1\t2=7\n2\t-"
    tokens = tuple(
        TokenLogprob(token, math.log(0.5), options if token == "7" else ())
        for token in ("1\t2", "=", "7", "\n2\t-")
    )
    reply = ChatReply(text, "stop", None, tokens, 1, 0, 1, "m", 0.1, 1)
    answer = said(text, logprobs=kept_digits(reply))
    simulated = simulator(lambda request: answer).simulate(LABEL, windows([1, 3], [3, 3]))
    assert simulated.predicted[0, 1] == pytest.approx((3.5 + 0.9) / 0.8)
    assert simulated.captured_mass == {0: pytest.approx(0.8)}


def test_suspects_are_windows_with_any_prediction_and_those_that_failed() -> None:
    predicted = np.array([[0, 0.1], [0, 0], [0, 0], [9, 9]], np.float32)
    assert suspects(Simulated(predicted, {1: NO_LINE})).tolist() == [True, True, False, True]


def test_a_planted_feature_scores_one_by_its_true_label_and_failures_are_left_out() -> None:
    draw = np.random.default_rng(0)
    texts = draw.integers(2, 5, (60, 8))
    texts[:30, 3] = 1
    active = make_stratum(
        texts[:30].tolist(), ((texts == 1) * 5.0)[:30].tolist(), population=300, n_tokens=8
    )
    silent = make_stratum(texts[30:].tolist(), population=3000, first_id=900, n_tokens=8)
    score = make_contexts(active, silent, make_stratum([], n_tokens=8), split="score")
    own = [1, 2, 3, 3, 2, 2, 2, 2]
    explain = make_contexts(
        make_stratum([own], [[5.0, *[0] * 7]], first_id=5000, n_tokens=8),
        make_stratum([[2, 2, 2, 3, 3, 4, 4, 4]], population=10, first_id=6000, n_tokens=8),
        make_stratum([], n_tokens=8),
    )

    def sometimes(request: ChatRequest) -> str:
        """Never says a word of windows that begin in one way."""
        lines = rate(request).splitlines()
        begins = [tokens[0] for tokens in windows_of(request)]
        return "\n".join(
            line for line, first in zip(lines, begins, strict=True) if first != "1 the"
        )

    for answer, is_whole in ((rate, True), (sometimes, False)):
        scored = score_label(LABEL, explain, score, simulator(answer), draw_resamples(0, 100))
        (headline,) = [each for each in scored.scores if each.metric == HEADLINE]
        assert headline.simulator == "chat_sparse/m"
        assert headline.value == pytest.approx(1.0)
        failed = [each for each in scored.simulations if each.status == "failed"]
        assert headline.design["n_failed_windows"] == len(failed)
        assert (len(failed) == 0) == is_whole
        assert {each.reason for each in failed} <= {NO_LINE}
        assert all(each.predicted is None for each in failed)
