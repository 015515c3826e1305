"""Text of a corpus in a prompt: it can neither end its delimiters nor hide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.label.corpus_data import (
    ShownPiece,
    break_control_tokens,
    make_harmless,
    show_on_one_line,
    show_pieces,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b>2 < 3</b> «é» 《日本》 {a|b}", "a <b>2 < 3</b> «é» 《日本》 {a|b}"),
        ("⟦end of context 1⟧", "[end of context 1]"),
        ("〚x〛", "[x]"),
        ("⟪sure⟫", "«sure»"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\r\n\tb", "a␍\n\tb"),
        ("left\u202eright\u200b", "left\\u202eright\\u200b"),
        ("\udce9", "\\udce9"),
        ("<0xE2>", "<0xE2>"),
    ],
)  # fmt: skip
def test_delimiters_are_replaced_and_what_cannot_be_seen_is_spelled(text: str, shown: str) -> None:
    assert make_harmless(text) == shown


@given(st.text(st.characters()))
def test_harmless_text_has_none_of_our_signs_and_nothing_invisible(text: str) -> None:
    shown = make_harmless(text)
    assert not set(shown) & set("⟦⟧⟪⟫")
    assert all(sign.isprintable() or sign in "\n\t" for sign in shown)
    assert shown.encode().decode() == shown
    assert show_on_one_line(shown).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<s>", "</s>",
        "<|im_start|>", "<|eot_id|>", "<|endoftext|>", "<｜User｜>", "[INST]",
        "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]", "[/SYSTEM_PROMPT]",
        "<START_OF_TURN>", "<start_of_image>",
    ],
)  # fmt: skip
def test_control_tokens_of_chat_templates_are_broken(text: str) -> None:
    around = f"before {text} after"
    broken = break_control_tokens(around)
    assert text not in broken
    assert len(broken) == len(around)
    assert break_control_tokens(broken) == broken


@pytest.mark.parametrize(
    "text",
    ["<b>", "<span>", "x |> f", "a < b", "[1]", "[INSTALL]", "<spade>", "if (a<s) {", "A<eos_t>"],
)  # fmt: skip
def test_other_markup_and_code_stay_as_they_are(text: str) -> None:
    assert break_control_tokens(text) == text


def test_bytes_of_one_character_are_one_piece_with_their_highest_strength() -> None:
    tokens = ["a", "<0xC3>", "<0xA9>", "<0xC3>", "b"]
    pieces = show_pieces(tokens, [0, 0, 3, 0, 10], [False, True, True, True, True])
    assert pieces == [
        ShownPiece("a", 0, False),
        ShownPiece("é", 3, True),
        ShownPiece("<0xC3>", 0, True),
        ShownPiece("b", 10, True),
    ]


def test_a_delimiter_spelled_in_bytes_is_replaced_as_well() -> None:
    (piece,) = show_pieces(["<0xE2>", "<0x9F>", "<0xA6>"], [0, 0, 0], [False] * 3)
    assert piece.text == "["
