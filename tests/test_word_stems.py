"""Words without their endings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.store.word_stems import stem


@pytest.mark.parametrize(
    "words",
    [
        "doubt doubts doubted doubting",
        "express expressed expressing expresses",
        "quote quotes quoted quoting",
        "code codes coded coding",
        "query queries",
        "stop stops stopped stopping",
        "class classes",
    ],
)
def test_words_that_differ_in_their_ending_have_one_stem(words: str) -> None:
    assert len({stem(word) for word in words.split()}) == 1


# From Porter's paper, of the steps that are taken: 1a, 1b, 1c, 5a.
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("caress", "caress"),
        ("feed", "feed"),
        ("plastered", "plaster"),
        ("bled", "bled"),
        ("motoring", "motor"),
        ("sing", "sing"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("hissing", "hiss"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("probate", "probat"),
        ("rate", "rate"),
        ("cease", "ceas"),
    ],
)
def test_the_examples_of_the_paper_come_out_as_printed_there(word: str, expected: str) -> None:
    assert stem(word) == expected


@pytest.mark.parametrize(
    ("one", "other"), [("import", "important"), ("universe", "university"), ("new", "news2")]
)
def test_words_of_different_meaning_stay_apart(one: str, other: str) -> None:
    assert stem(one) != stem(other)


@given(st.text(max_size=12))
def test_a_stem_is_never_empty_and_never_longer_by_more_than_a_letter(word: str) -> None:
    found = stem(word)
    assert bool(found) == bool(word)
    assert len(found) <= len(word)


@given(st.text(alphabet="абвé日本0123", min_size=1, max_size=8))
def test_what_is_not_of_english_letters_stays_as_it_is(word: str) -> None:
    assert stem(word) == word
