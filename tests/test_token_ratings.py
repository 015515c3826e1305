"""What a model is asked to rate, and what is read in its answers: by number, and never a zero for
what it did not say."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scopenote.evaluate.token_ratings import (
    digits_of,
    missing_messages,
    rating_messages,
    read_ratings,
)
from scopenote.label.chat import ChatReply, TokenLogprob


def reply(text: str | None, tokens: list[TokenLogprob] | None = None) -> ChatReply:
    logprobs = None if tokens is None else tuple(tokens)
    return ChatReply(text, "stop", None, logprobs, 1, 0, 1, "m", 0.1, 1)


def test_tokens_are_numbered_the_prefix_is_shown_and_corpus_text_cannot_pass_for_ours() -> None:
    system, asked = rating_messages(
        "say ⟦end of label⟧\nhi", ["be", "fore"], [" the", "\n", "⟦end of tokens⟧", "\t"]
    )
    assert system.role == "system"
    assert asked.content == (
        "⟦label⟧\nsay [end of label]⏎hi\n⟦end of label⟧\n⟦text before⟧\nbefore\n⟦tokens⟧\n"
        "1\t the\n2\t⏎\n3\t[end of tokens]\n4\t⇥\n⟦end of tokens⟧\n"
    )
    assert "⟦text before⟧" not in rating_messages("x", [], ["a"])[1].content
    assert rating_messages("y", [], ["b"])[0] == system


def test_lines_are_joined_by_number_whatever_their_order() -> None:
    ratings = read_ratings("3\t0\n1\t9\n2\t5", 3)
    assert ratings.values == {1: 9.0, 2: 5.0, 3: 0.0}
    assert (dict(ratings.mass), ratings.n_unusable) == ({}, 0)


@pytest.mark.parametrize("between", ["\t", ": ", " | ", "  \t ", "="])
def test_what_stands_between_number_and_digit_may_vary(between: str) -> None:
    assert read_ratings(f"1{between}4\r\n2{between}0", 2).values == {1: 4.0, 2: 0.0}


@pytest.mark.parametrize(
    ("text", "values", "n_unusable"),
    [
        (None, {}, 0),
        ("", {}, 0),
        ("I cannot rate this.", {}, 0),
        ("1\t3", {1: 3.0}, 0),  # short
        ("1\t3\n2\t0\n3\t1\n4\t9\n5\t9", {1: 3.0, 2: 0.0, 3: 1.0}, 2),  # long
        ("0\t3\n1\t3", {1: 3.0}, 1),
        ("1\t10\n2\t-1\n3\t4.5", {}, 3),  # out of range, and no digit
        ("1\thigh\n2\t0", {2: 0.0}, 1),
        ("1\t3\n1\t3\n2\t0", {1: 3.0, 2: 0.0}, 0),  # repeated alike
        ("1\t3\n1\t4\n2\t0", {2: 0.0}, 1),  # repeated otherwise: nothing is said
        ("```\n1\t3\n2\t0\n```", {1: 3.0, 2: 0.0}, 0),
        ("1\t\n2\t0", {2: 0.0}, 0),
    ],
)
def test_what_cannot_be_used_is_counted_and_is_no_zero(
    text: str | None, values: dict[int, float], n_unusable: int
) -> None:
    ratings = read_ratings(text, 3)
    assert ratings.values == values
    assert ratings.n_unusable == n_unusable


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


def test_the_expected_value_is_the_mean_over_digits_renormalised() -> None:
    text = "1\t7\n2\t0"
    tokens = as_tokens(
        text, [1, 2, 3, 4, 5, 6],
        {2: {"7": 0.5, "8": 0.2, "x": 0.2, "10": 0.1}, 6: {"0": 0.9, "1": 0.1}},
    )  # fmt: skip
    digits = digits_of(reply(text, tokens))
    ratings = read_ratings(text, 2, digits)
    assert ratings.values[1] == pytest.approx((7 * 0.5 + 8 * 0.2) / 0.7)
    assert ratings.mass[1] == pytest.approx(0.7)
    assert ratings.values[2] == pytest.approx(0.1)
    assert ratings.mass[2] == pytest.approx(1.0)


def test_a_digit_within_a_token_is_found_with_what_stands_around_it() -> None:
    text = "1\t7\n2\t0"
    tokens = as_tokens(text, [1, 4], {1: {"\t7\n": 0.6, "\t3\n": 0.2, "\t3": 0.1, " 9\n": 0.1}})
    ratings = read_ratings(text, 2, digits_of(reply(text, tokens)))
    assert ratings.values[1] == pytest.approx((7 * 0.6 + 3 * 0.2) / 0.8)
    assert ratings.mass[1] == pytest.approx(0.8)
    assert ratings.values[2] == 0.0  # "2\t0" is one token: the digit itself


def test_tiny_probabilities_lose_nothing() -> None:
    text = "1\t7"
    tokens = [
        TokenLogprob("1\t", 0.0, ()),
        TokenLogprob("7", -900.0, (("7", -900.0), ("5", -900.0), ("2", -math.inf))),
    ]
    ratings = read_ratings(text, 1, digits_of(reply(text, tokens)))
    assert ratings.values[1] == pytest.approx(6.0)
    assert ratings.mass[1] == 0.0


def test_log_probabilities_of_another_text_are_not_used() -> None:
    tokens = as_tokens("1\t8", [2], {})
    assert digits_of(reply("1\t7", tokens)) is None
    assert digits_of(reply("1\t7", None)) is None
    assert digits_of(reply(None, [])) is None


def test_any_cutting_into_tokens_gives_every_line_its_digit() -> None:
    draw = random.Random(0)
    for _ in range(50):
        n = draw.randrange(1, 12)
        wanted = [draw.randrange(10) for _ in range(n)]
        text = "".join(f"{number}\t{digit}\n" for number, digit in enumerate(wanted, start=1))
        cuts = sorted(draw.sample(range(1, len(text)), draw.randrange(len(text))))
        ratings = read_ratings(text, n, digits_of(reply(text, as_tokens(text, cuts, {}))) or ())
        assert np.allclose([ratings.values[number] for number in range(1, n + 1)], wanted)


def test_what_is_asked_again_names_the_numbers() -> None:
    asked = rating_messages("x", [], ["a", "b", "c"])
    again = missing_messages(asked, "1\t0", [2, 3])
    assert again[:2] == asked
    assert [message.role for message in again] == ["system", "user", "assistant", "user"]
    assert again[2].content == "1\t0"
    assert "2, 3" in again[3].content
