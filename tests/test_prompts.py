"""How long a prompt is, and what is left out when it is too long."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.label.prompts import (
    DOES_NOT_FIT,
    ContextBlock,
    NoPrompt,
    RenderedPrompt,
    drop_to_fit,
    estimate_tokens,
)

WORDS = ["one", "two words", "three\nlines of\ntext", "日本", "⟦context 1⟧\n", "x1 = [2]", ""]


def prompt_of(texts: list[str], ending: str = "the end") -> RenderedPrompt:
    blocks = tuple(ContextBlock(100 + number, text) for number, text in enumerate(texts))
    return RenderedPrompt("the system message", blocks, ending, "v")


@pytest.mark.parametrize(
    ("text", "n_tokens"),
    [
        ("", 0),
        ("the cat", 2),
        ("internationalisation", 4),
        (" the\t10\n", 5),
        ("a  b", 3),
        ("x1=2", 4),
        ("é", 1),
        ("日本", 4),
        ("⟦context 1⟧", 7),
    ],
)
def test_tokens_are_estimated_by_words_and_signs(text: str, n_tokens: int) -> None:
    assert estimate_tokens(text) == n_tokens


@given(st.text(st.one_of(st.characters(), st.sampled_from("abcdef \n\t日é"))))
def test_tokens_are_estimated_as_by_counting_word_by_word(text: str) -> None:
    slow = 0
    for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z]|\s+", text):
        if word.isspace():
            slow += word != " "
        elif word.isascii():
            slow += math.ceil(len(word) / 5)
        else:
            slow += math.ceil(len(word.encode("utf-8", "surrogatepass")) / 2)
    assert estimate_tokens(text) == slow


@given(st.text())
def test_the_estimate_is_never_more_than_the_bytes_and_never_less_than_the_words(text: str) -> None:
    assert len(text.split()) <= estimate_tokens(text)
    assert estimate_tokens(text) <= len(text.encode("utf-8", "surrogatepass"))


@given(st.lists(st.sampled_from(WORDS)), st.sampled_from(WORDS), st.integers(0, 120))
def test_what_fits_is_the_longest_beginning_that_does(
    texts: list[str], ending: str, max_tokens: int
) -> None:
    prompt = prompt_of(texts, ending)
    beginnings = [prompt_of(texts[:n], ending) for n in range(1, len(texts) + 1)]
    fitting = [each for each in beginnings if each.estimated_tokens <= max_tokens]
    if not texts and prompt.estimated_tokens <= max_tokens:
        fitting = [prompt]
    found = drop_to_fit(prompt, max_tokens)
    if not fitting:
        assert found == NoPrompt(DOES_NOT_FIT)
        return
    assert isinstance(found, RenderedPrompt)
    assert found.messages == fitting[-1].messages
    assert found.window_ids == fitting[-1].window_ids
    assert found.n_dropped == len(texts) - len(found.blocks)


def test_contexts_dropped_twice_are_counted_together() -> None:
    prompt = prompt_of(["word " * 50] * 6)
    once = drop_to_fit(prompt, prompt.estimated_tokens - 1)
    assert isinstance(once, RenderedPrompt)
    twice = drop_to_fit(once, once.estimated_tokens - 1)
    assert isinstance(twice, RenderedPrompt)
    assert (once.n_dropped, twice.n_dropped, len(twice.blocks)) == (1, 2, 4)


def test_the_static_part_comes_first_and_the_feature_s_part_last() -> None:
    messages = prompt_of(["one ", "two "], "the end").messages
    assert [(each.role, each.content) for each in messages] == [
        ("system", "the system message"),
        ("user", "one two the end"),
    ]
