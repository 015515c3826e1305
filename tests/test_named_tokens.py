"""Which tokens a label names."""

from __future__ import annotations

from scopenote.evaluate.named_tokens import named_tokens

VOCABULARY = [
    "lion", " lion", " Lion", "LION", " lions", " the", "the", "(", "()", " animals", " words",
    " mentions", " of", "n't", " 7", "7", "日本", " don't", "x", " x", "\n",
    "    ", "\n\n", " ",
]  # fmt: skip


def named(label: str) -> list[str]:
    ids = named_tokens(label, lambda text: VOCABULARY.index(text) if text in VOCABULARY else None)
    assert list(ids) == sorted(ids)
    return [VOCABULARY[number] for number in ids]


def test_words_are_found_in_every_case_with_and_without_a_space_before_them() -> None:
    assert named("lion cubs") == ["lion", " lion", " Lion", "LION"]


def test_small_words_and_words_about_text_are_left_out() -> None:
    assert named("mentions of the words") == []
    assert named("words for animals") == [" animals"]


def test_what_is_quoted_is_taken_as_it_stands() -> None:
    assert named("the word “the”") == [" the", "the"]
    assert named('an opening "("') == ["("]
    assert named("calls with `()`, «x» or ‘7’") == ["()", " 7", "7", "x", " x"]


def test_the_token_lookups_labels_list_tokens() -> None:
    assert named("“the”, “(”, “lions”") == [" lions", " the", "the", "("]


def test_signs_for_what_cannot_be_seen_are_what_they_stand_for() -> None:
    assert named("“⏎”, “␣×4”, “⏎⏎”") == ["\n", "    ", "\n\n"]
    assert named("“␣”") == [" "]


def test_words_that_are_several_tokens_are_not_named_by_their_pieces() -> None:
    assert named("lionesses") == []


def test_letters_alone_are_names_only_in_quotation_marks() -> None:
    assert named("x as a variable") == []
    assert named("“x” as a variable") == ["x", " x"]


def test_other_scripts_apostrophes_and_digits_are_words() -> None:
    assert named("日本, don't and 7s") == ["日本", " don't"]


def test_an_empty_label_names_nothing() -> None:
    assert named("") == named("“ ”, …") == []
