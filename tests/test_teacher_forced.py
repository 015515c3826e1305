"""What is written with slots for ratings, and how ratings are read from them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.teacher_forced import (
    DIGITS,
    FILLER,
    NO_DIGIT,
    NOT_FINITE,
    before_slots,
    filled_answer,
    instructions,
    read_slots,
    slot_messages,
    texts_of,
)
from scopenote.evaluate.token_ratings import HIGHEST, rating_messages

from .planted_feature import make_stratum

TOKENS = st.lists(
    st.text(st.one_of(st.characters(), st.sampled_from("?\n\t 019⟦⟧<|")), max_size=6), max_size=8
)


def test_an_answer_has_a_line_for_each_token_with_a_filler_for_its_rating() -> None:
    assert filled_answer([" she", " said", "\n"]) == "1\t she\t?\n2\t said\t?\n3\t⏎\t?"
    assert before_slots([" she", "?"]) == ["1\t she\t", "\n2\t?\t"]


def test_the_label_is_shown_first_and_text_before_only_where_there_is_some() -> None:
    system, user = slot_messages("a label", ["one", " two"])
    assert system == instructions()
    assert user.content == ("⟦label⟧\na label\n⟦end of label⟧\n⟦text before⟧\none two\n")
    _, user = slot_messages("a label", [])
    assert user.content == "⟦label⟧\na label\n⟦end of label⟧\n"


def test_the_instructions_show_hidden_ratings_before_open_ones() -> None:
    text = instructions().content
    examples = text.split("⟦answer⟧\n")[1:]
    assert len(examples) >= 2
    hidden = []
    for example in examples:
        lines = re.findall(r"^(\d+)\t(.+)\t([0-9?])$", example, re.MULTILINE)
        assert [int(number) for number, _, _ in lines] == list(range(1, len(lines) + 1))
        ratings = "".join(rating for _, _, rating in lines)
        assert re.fullmatch(r"\?+[0-9]+", ratings)
        hidden.append(ratings.count(FILLER))
    # Else a model would learn at which line ratings begin.
    assert len(set(hidden)) == len(hidden)


@given(TOKENS)
def test_no_token_ends_its_line_or_adds_a_tab(tokens: list[str]) -> None:
    lines = filled_answer(tokens).split("\n") if tokens else []
    assert len(lines) == len(tokens)
    for number, each in enumerate(lines, start=1):
        first, _, last = each.split("\t")
        assert (first, last) == (str(number), FILLER)
        assert "⟦" not in each


@given(st.text(), TOKENS, TOKENS)
def test_label_and_text_are_shown_as_to_a_model_that_writes(
    label: str, before: list[str], tokens: list[str]
) -> None:
    _, user = slot_messages(label, before)
    _, other = rating_messages(label, before, tokens)
    assert other.content.startswith(user.content)
    listed = other.content.removeprefix(user.content + "⟦tokens⟧\n").split("⟦end of tokens")[0]
    assert "".join(f"{piece.strip(chr(10))[:-1]}\n" for piece in before_slots(tokens)) == listed


def test_a_rating_is_the_mean_of_the_digits_by_their_probabilities() -> None:
    shares = np.full((2, 10), 0.0)
    shares[0, [3, 7]] = 0.3, 0.5
    shares[1, 0] = 0.2
    with np.errstate(divide="ignore"):
        rated = read_slots(np.log(shares))
    assert isinstance(rated, Rated)
    assert rated.values == pytest.approx(((0.9 + 3.5) / 0.8, 0.0))
    assert rated.mass == pytest.approx((0.8 + 0.2) / 2)


@given(st.lists(st.lists(st.floats(-500, 0), min_size=10, max_size=10), min_size=1, max_size=4))
def test_ratings_are_those_of_exact_sums_and_on_the_scale(logprobs: list[list[float]]) -> None:
    rated = read_slots(np.array(logprobs))
    assert isinstance(rated, Rated)
    for value, row in zip(rated.values, logprobs, strict=True):
        weights = [math.exp(each - max(row)) for each in row]
        exact = math.fsum(n * w for n, w in enumerate(weights)) / math.fsum(weights)
        assert value == pytest.approx(exact, abs=1e-9)
        assert 0 <= value <= HIGHEST + 1e-9
    assert rated.mass is not None
    assert 0 <= rated.mass <= 1


@pytest.mark.parametrize(
    ("logprob", "reason"), [(-math.inf, NO_DIGIT), (math.nan, NOT_FINITE), (math.inf, NOT_FINITE)]
)
def test_a_slot_that_says_nothing_fails_its_window(logprob: float, reason: str) -> None:
    logprobs = np.full((3, len(DIGITS)), -1.0)
    logprobs[1] = logprob
    assert read_slots(logprobs) == reason


def test_padding_is_no_text() -> None:
    windows = make_stratum([[1, 2], [3]], n_tokens=3, first_id=5).windows
    words = {1: "one", 2: "two", 3: "three"}
    first, second = texts_of(windows, words.__getitem__, lambda name: [int(name) - 4])
    assert (first.before, first.tokens) == (("one",), ("one", "two"))
    assert (second.before, second.tokens) == (("two",), ("three",))
