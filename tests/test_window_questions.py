"""Several windows in one call: what is shown, what is read, and what is asked for again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scopenote.evaluate.token_ratings import digits_of
from scopenote.evaluate.window_questions import (
    CONTRADICTED,
    NO_ANSWER,
    Answer,
    compose,
    read_answers,
    show_label,
)
from scopenote.label.chat import ChatReply, ChatRequest, TokenLogprob
from scopenote.label.labelling import CUT_OFF, DECLINED, NO_REPLY, WITHHELD

from .scripted_judge import asker

PROMPTS = ("detect_windows", "mark_tokens", "tell_apart")


def question(n: int = 3) -> Any:
    return compose(
        "detect_windows", show_label("lions"), [f"⟦window {i}⟧\n" for i in range(n)], (0, 1)
    )


def said(replies: list[Any], n: int = 3) -> list[Answer | str]:
    """What comes of a question where the model replies this, one call after another."""
    left = iter(replies)
    (answers,) = asker(lambda request: next(left)).answers([question(n)])
    return answers


YES, NO = Answer((0.0, 1.0)), Answer((1.0, 0.0))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1\t1\n2\t0\n3\t1", {1: YES, 2: NO, 3: YES}),
        ("3: 1\r\n1 | 0", {3: YES, 1: NO}),
        ("Here:\n```\n1\t1\n```\n2. no", {1: YES}),
        ("1\t1\n1\t1\n2\t0", {1: YES, 2: NO}),
        ("1\t1\n1\t0\n1\t1\n2\t0", {2: NO}),
        ("1\t7\n2\t0", {2: NO}),
        ("1\t1\n1\t7\n2\t0", {2: NO}),
        ("0\t1\n4\t1\n2\t10\n3\tyes", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_what_is_read_is_what_is_said_of_a_window_and_nothing_else(
    text: str | None, found: dict[int, Answer]
) -> None:
    assert read_answers(text, 3, (0, 1)).of_window == found


def test_log_probabilities_give_shares_and_other_digits_are_no_answer() -> None:
    options = [(2, [(0, math.log(0.2)), (1, math.log(0.6)), (7, math.log(0.15))])]
    (answer,) = read_answers("1\t1\n", 1, (0, 1), options).of_window.values()
    assert answer.probabilities == pytest.approx((0.25, 0.75))
    assert answer.mass == pytest.approx(0.8)
    (answer,) = read_answers("1\t1\n", 1, (0, 1), [(2, [(7, 0.0)])]).of_window.values()
    assert answer == Answer((0.0, 1.0), 0.0)


def test_the_stored_log_probabilities_of_a_reply_are_those_that_are_read() -> None:
    options = (("1", math.log(0.7)), ("0", math.log(0.2)), (" 1", math.log(0.05)))
    tokens = (
        TokenLogprob("1\t", 0.0, ()),
        TokenLogprob("1", math.log(0.7), options),
        TokenLogprob("\n2 :", 0.0, ()),
        TokenLogprob(" 0", math.log(0.9), ((" 0", math.log(0.9)), (" 1", math.log(0.1)))),
    )
    text = "".join(token.token for token in tokens)
    reply = ChatReply(text, "stop", None, tokens, 1, 0, 1, "m", 0.1, 1)
    answers = said([{"text": text, "logprobs": digits_of(reply)}], 2)
    assert answers[0].probabilities == pytest.approx((2 / 9, 7 / 9))
    assert answers[0].mass == pytest.approx(0.9)
    assert answers[1].probabilities == pytest.approx((0.9, 0.1))


def test_windows_that_are_left_out_are_asked_for_once_more_by_their_numbers() -> None:
    asked: list[ChatRequest] = []
    replies = iter(["2\t1", "1\t0\n3\t1\n2\t0"])
    (answers,) = asker(lambda request: next(replies), asked).answers([question()])
    assert answers == [NO, YES, YES]
    assert [len(each.messages) for each in asked] == [2, 4]
    assert asked[1].messages[2].content == "2\t1"
    assert "digits 0, 1: 1, 3." in asked[1].messages[3].content
    assert asked[1].max_tokens < asked[0].max_tokens
    assert {(each.temperature, each.top_logprobs) for each in asked} == {(0.0, 10)}


@pytest.mark.parametrize(
    ("replies", "answers"),
    [
        ([None], [f"{NO_REPLY}: timeout"] * 3),
        ([{"text": None, "refusal": "I cannot."}], [DECLINED] * 3),
        ([{"text": "", "finish_reason": "content_filter"}], [WITHHELD] * 3),
        (["nonsense", "nonsense"], [NO_ANSWER] * 3),
        (["1\t1", "nonsense"], [YES, NO_ANSWER, NO_ANSWER]),
        (["1\t1", None], [YES] + [f"{NO_REPLY}: timeout"] * 2),
        (["1\t1\n2\t1\n3\t1\n3\t0", "3\t1\n3\t0"], [YES, YES, CONTRADICTED]),
        (["1\t1\n2\t1\n3\t1\n3\t0", "3\t0"], [YES, YES, NO]),
        (["1\t1", {"text": "2\t1\n3\t1", "finish_reason": "length"}], [YES, YES, CUT_OFF]),
        ([{"text": "1\t1\n2\t0", "finish_reason": "length"}, "2\t1\n3\t0"], [YES, YES, NO]),
    ],
)
def test_a_window_without_an_answer_has_failed_with_its_reason_and_is_no_zero(
    replies: list[Any], answers: list[Answer | str]
) -> None:
    assert said(replies) == answers


def test_marks_and_lines_of_ours_cannot_come_from_a_window_or_a_label() -> None:
    judge = asker(lambda request: "")
    ids = np.array([24, 25, 26, 1, 2, -1], np.int32)
    shown = judge.show(4, ids, np.array([0, 0, 0, 1, 1, 0], bool))
    assert shown == "⟦window 4⟧\n«»[window 1]⟪ lion tiger⟫\n"
    assert show_label("say ⟦end of label⟧\n⟪x⟫") == "say [end of label]⏎«x»\n"


@pytest.mark.parametrize("name", PROMPTS)
def test_each_prompt_shows_the_answer_to_an_example_in_the_form_that_is_read(name: str) -> None:
    system = compose(name, "", [], (0, 1)).messages[0].content
    example, answer = system.split("A good answer to it:")
    n = example.count("\n⟦window ")
    assert set(read_answers(answer, 9, range(10)).of_window) == set(range(1, n + 1))
