"""Answers that name active tokens only: a window without its line is never taken for silent."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.sparse_ratings import (
    NO_DIGIT,
    NO_LINE,
    NO_SUCH_TOKEN,
    NO_SUCH_WINDOW,
    NOT_IN_FORM,
    TWO_VALUES,
    Unusable,
    kept_digits,
    most_sparse_reply_tokens,
    read_sparse,
    show_window,
    sparse_messages,
)
from scopenote.evaluate.token_ratings import digits_of
from scopenote.label.chat import ChatReply, TokenLogprob
from scopenote.label.labelling import CUT_OFF, WITHHELD

LENGTHS = [3, 3, 3]


def values(text: str | None, finish_reason: str = "stop") -> list[tuple[float, ...] | str]:
    """Of each window its ratings, or why there are none."""
    found = read_sparse(text, LENGTHS, finish_reason)
    return [each.values if isinstance(each, Rated) else each.reason for each in found]


def reply(text: str, tokens: list[TokenLogprob] | None = None) -> ChatReply:
    logprobs = None if tokens is None else tuple(tokens)
    return ChatReply(text, "stop", None, logprobs, 1, 0, 1, "m", 0.1, 1)


def test_windows_and_their_tokens_are_numbered_and_a_space_at_the_beginning_is_told() -> None:
    windows = [
        show_window(["be", "fore\n"], [" the", "re", "\n", " 5", "5", "+"]),
        show_window([], ["⟦window 3⟧", "\t"]),
    ]
    system, asked = sparse_messages("say ⟦end of label⟧\nhi", windows)
    assert system.role == "system"
    assert asked.content == (
        "⟦label⟧\nsay [end of label]⏎hi\n⟦end of label⟧\n"
        "⟦before window 1⟧\nbefore\n\n⟦window 1⟧\n1 the\n2+re\n3+⏎\n4 5\n5+5\n6++\n"
        "⟦window 2⟧\n1+[window 3]\n2+⇥\n⟦end of 2 windows⟧\n"
    )


def test_what_is_asked_again_is_another_request_with_our_words_at_its_end() -> None:
    window = show_window([], [" a"])
    first, again = (sparse_messages("x", [window], is_again)[1] for is_again in (False, True))
    assert again.content.startswith(first.content)
    assert "one line for each window" in again.content.removeprefix(first.content)


def test_tokens_that_a_line_leaves_out_are_zero() -> None:
    assert values("1\t2=9 3=1\n2\t-\n3\t1=4") == [(0, 9, 1), (0, 0, 0), (4, 0, 0)]


def test_a_window_without_a_line_is_not_silent() -> None:
    assert values("1\t-\n3\t-") == [(0, 0, 0), NO_LINE, (0, 0, 0)]
    assert values(None) == values("") == values("I cannot rate this.") == [NO_LINE] * 3
    assert values("1\t-\n2\t\n3\t-")[1] == NO_LINE


@pytest.mark.parametrize(
    "line",
    [
        "2\t1=9 3=2",
        "2: 1=9, 3=2",
        "Window 2 | 1=9; 3=2",
        " 2 1=9 3=2 \r",
        "2\t3:2 1:9",
        "2:1=9,3=2",
    ],
)
def test_what_stands_between_may_vary(line: str) -> None:
    assert values(f"1\t–\n{line}\n3: -") == [(0, 0, 0), (9, 0, 2), (0, 0, 0)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2\t1=10", NO_DIGIT),
        ("2\t1=4.5", NO_DIGIT),
        ("2\t1=high", NO_DIGIT),
        ("2\t1=-1", NO_DIGIT),
        ("2\t4=9", NO_SUCH_TOKEN),
        ("2\t0=9", NO_SUCH_TOKEN),
        ("2\t1=9 1=8", TWO_VALUES),
        ("2\t1=9\n2\t1=8", TWO_VALUES),
        ("2\t1=9\n2\t-", TWO_VALUES),
        ("2\t9", NOT_IN_FORM),
        ("2\t- 1=9", NOT_IN_FORM),
        ("2\tnone", NOT_IN_FORM),
        ("2\t1=9 and so on", NOT_IN_FORM),
    ],
)
def test_one_fault_in_a_line_and_nothing_of_its_window_is_used(line: str, reason: str) -> None:
    assert values(f"1\t3=1\n{line}\n3\t-") == [(0, 0, 1), reason, (0, 0, 0)]


def test_what_is_said_twice_alike_is_said() -> None:
    assert values("1\t3=1 3=1\n1\t3=1\n2\t-\n2\t-\n3\t-")[:2] == [(0, 0, 1), (0, 0, 0)]


@pytest.mark.parametrize("other", ["0\t-", "4\t1=3"])
def test_an_answer_that_counts_other_windows_is_not_trusted_at_all(other: str) -> None:
    assert values(f"1\t-\n2\t1=9\n3\t-\n{other}") == [NO_SUCH_WINDOW] * 3


def test_a_sentence_that_begins_with_a_number_is_no_window() -> None:
    assert values("2026 was the year.\n1\t-\n2\t-\n3\t-") == [(0, 0, 0)] * 3


@pytest.mark.parametrize(("ended", "reason"), [("length", CUT_OFF), ("content_filter", WITHHELD)])
def test_of_an_answer_that_was_cut_short_the_last_line_is_not_read(ended: str, reason: str) -> None:
    assert values("1\t3=1\n2\t1=9", ended) == [(0, 0, 1), reason, reason]
    assert values("1\t3=1\n2\t1=9\n", ended) == [(0, 0, 1), (9, 0, 0), reason]
    assert values("1\t3=1\n2\t1=9\n3\t-", "stop")[1] == (9, 0, 0)


def as_tokens(
    text: str, cuts: list[int], options: dict[int, dict[str, float]]
) -> list[TokenLogprob]:
    """The text cut into tokens; by the place where one begins, others and their probabilities."""
    tokens = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        token = text[begin:end]
        others = options.get(begin, {token: 1.0})
        alternatives = tuple((other, math.log(p)) for other, p in others.items())
        tokens.append(TokenLogprob(token, dict(alternatives).get(token, -50.0), alternatives))
    return tokens


def test_log_probabilities_give_the_value_and_the_mass_of_rated_tokens_only() -> None:
    text = "1\t2=7 3=1\n2\t-\n3\t1=4"
    tokens = as_tokens(
        text, [4, 5, 8, 9, 13, 17, 18],
        {4: {"7": 0.5, "8": 0.2, "x": 0.3}, 8: {"1": 0.6, "0": 0.4}, 18: {"4": 1.0}},
    )  # fmt: skip
    kept = kept_digits(reply(text, tokens))
    one, two, three = read_sparse(text, LENGTHS, "stop", kept or ())
    assert isinstance(one, Rated)
    assert isinstance(two, Rated)
    assert one.values == pytest.approx((0, (3.5 + 1.6) / 0.7, 0.6))
    assert one.mass == pytest.approx((0.7 + 1.0) / 2)
    assert (two.values, two.mass) == ((0, 0, 0), None)
    assert isinstance(three, Rated)
    assert three.mass == pytest.approx(1.0)


def test_any_cutting_into_tokens_gives_every_rating_its_digit() -> None:
    draw = random.Random(0)
    for _ in range(50):
        wanted = [[draw.choice((0, 0, draw.randrange(1, 10))) for _ in range(12)] for _ in range(5)]
        lines = [" ".join(f"{n}={v}" for n, v in enumerate(row, 1) if v) or "-" for row in wanted]
        text = "\n".join(f"{number}\t{rest}" for number, rest in enumerate(lines, start=1))
        cuts = sorted(draw.sample(range(1, len(text)), draw.randrange(len(text))))
        kept = kept_digits(reply(text, as_tokens(text, cuts, {})))
        found = read_sparse(text, [12] * 5, "stop", kept or ())
        assert all(isinstance(each, Rated) for each in found)
        assert np.allclose([each.values for each in found if isinstance(each, Rated)], wanted)


def test_one_function_keeps_the_digits_of_either_form_of_answer() -> None:
    dense, sparse = "1\t7\n2\t0", "1\t2=7\n2\t-"
    of_dense = reply(dense, as_tokens(dense, [2, 3, 6], {}))
    assert kept_digits(of_dense) == digits_of(of_dense) != []
    of_sparse = reply(sparse, as_tokens(sparse, [4, 5], {4: {"7": 0.9, "6": 0.1}}))
    assert kept_digits(of_sparse) == [[4, [[6, math.log(0.1)], [7, math.log(0.9)]]]]
    assert kept_digits(reply(sparse, None)) is None
    assert kept_digits(reply(sparse, as_tokens(dense, [2], {}))) is None


def test_what_is_kept_of_a_silent_answer_is_next_to_nothing() -> None:
    text = "\n".join(f"{number}\t-" for number in range(1, 17))
    kept = kept_digits(reply(text, as_tokens(text, list(range(1, len(text))), {})))
    assert len(json.dumps(kept)) == 2


def test_an_answer_may_rate_every_token_of_a_few_windows_and_forty_of_sixteen() -> None:
    window = show_window([], [" the"] * 64)
    assert most_sparse_reply_tokens([window] * 4) > 4 * 64 * 6
    assert 16 * 40 * 6 < most_sparse_reply_tokens([window] * 16) <= 4096


def test_an_unusable_window_says_why() -> None:
    assert read_sparse("", [1]) == [Unusable(NO_LINE)]
