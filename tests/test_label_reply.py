"""What replies come to: labels that keep the rules, or the reason why not."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.label.chat import Message
from scopenote.label.label_reply import (
    BROKEN_OFF,
    EMPTY,
    MAX_LABEL_CHARACTERS,
    MAX_LABEL_WORDS,
    MAX_REPLY_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    NO_OBJECT,
    SEVERAL,
    TOO_LONG,
    BadReply,
    LabelReply,
    clean_text,
    parse_reply,
    repair_messages,
)

GOOD = {"explanation": "They all do.", "near_miss": "Those that do not.", "label": 'words like "a"'}
REPLY = json.dumps(GOOD)


def reply_with(**changed: Any) -> str:
    return json.dumps({**GOOD, **changed})


@pytest.mark.parametrize(
    "text",
    [
        REPLY,
        f"\n  {REPLY}\n",
        json.dumps(GOOD, indent=2),
        f"```json\n{REPLY}\n```",
        f"```\n{REPLY}\n```\nI hope that helps!",
        f"Sure! Here is the label:\n\n{REPLY}",
        f"The braces {{ and }} are common, {{so}} here it is: {REPLY} {{end}}",
        f"<think>Maybe {{\"a\": 1}}?</think>{REPLY}",
        f"[{REPLY}]",
        f"{REPLY}\n{REPLY}",
        REPLY + reply_with(label=' words  like "a"'),
        reply_with(confidence=0.9),
        REPLY.replace("They all", "They\n  all"),
    ],
)  # fmt: skip
def test_an_answer_is_found_alone_in_a_fence_or_among_talk(text: str) -> None:
    assert parse_reply(text) == LabelReply(**GOOD)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, EMPTY),
        ("", EMPTY),
        (" \n\t", EMPTY),
        ("I'm sorry, but I can't help with that.", NO_OBJECT),
        ("<html><body>502 Bad Gateway</body></html>", NO_OBJECT),
        ("{}", NO_OBJECT),
        ('["label"]', NO_OBJECT),
        (REPLY[:-1], BROKEN_OFF),
        (REPLY[:25], BROKEN_OFF),
        (REPLY.replace(": ", " "), BROKEN_OFF),
        ("{" * 3_000 + '"label"', BROKEN_OFF),
        ('{"a":' * 1_500, NO_OBJECT),
        ('{"label": ' + "1" * 5_000 + "}", BROKEN_OFF),
        (REPLY + json.dumps({"label": "a"}), SEVERAL),
        (REPLY + " or rather " + reply_with(label="another"), SEVERAL),
        ("x" * (MAX_REPLY_CHARACTERS + 1), TOO_LONG),
        (json.dumps({"label": "a"}), "`explanation` is missing"),
        (json.dumps({"explanation": "a", "near_miss": "b"}), "`label` is missing"),
        (reply_with(label=None), "`label` is no text"),
        (reply_with(label=["a"]), "`label` is no text"),
        (reply_with(label=3), "`label` is no text"),
        (reply_with(label="\ud83d"), "`label` is empty"),
        (reply_with(label=" "), "`label` is empty"),
        (reply_with(label="\u200d\x1b[0m"), "`label` is empty"),
        (reply_with(near_miss="\u202e"), "`near_miss` is empty"),
        (reply_with(label="a " * 16), "`label` has more than 15 words"),
        (reply_with(label="a" * 201), "`label` has more than 200 characters"),
        (reply_with(explanation="a" * 2_001), "`explanation` has more than 2,000 characters"),
    ],
)
def test_a_reply_that_cannot_be_used_has_a_reason(text: str | None, reason: str) -> None:
    assert parse_reply(text) == BadReply(reason)


@pytest.mark.parametrize("label", ["a " * 15, "a" * 200, "“(”", "日本語"])
def test_labels_at_the_limits_are_taken(label: str) -> None:
    reply = parse_reply(reply_with(label=label, explanation="a" * 2_000))
    assert isinstance(reply, LabelReply)
    assert reply.label == label.strip()


@given(st.text())
def test_the_same_fault_has_the_same_reason_whatever_the_text(text: str) -> None:
    """So that failures can be counted by their reason."""
    reply = parse_reply(reply_with(label="word " * 16 + text))
    assert reply == BadReply("`label` has more than 15 words")


ANY_VALUE = st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text(), max_size=2))
ANY_OBJECT = st.dictionaries(st.sampled_from([*GOOD, "other"]), ANY_VALUE).map(json.dumps)


@given(st.lists(st.one_of(st.text(), ANY_OBJECT, st.sampled_from([REPLY, "{", "}", "```"]))))
def test_whatever_is_replied_gives_a_label_that_keeps_the_rules_or_a_reason(
    parts: list[str],
) -> None:
    reply = parse_reply("".join(parts))
    if isinstance(reply, BadReply):
        assert reply.reason
        return
    assert 1 <= len(reply.label.split()) <= MAX_LABEL_WORDS
    assert len(reply.label) <= MAX_LABEL_CHARACTERS
    for text in (reply.label, reply.explanation, reply.near_miss):
        assert 0 < len(text) <= MAX_TEXT_CHARACTERS
        assert text == clean_text(text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  two\n\twords ", "two words"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07label", "label"),
        ("\x1b]8;;http://x.y\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("cats \x1b]0;and dogs", "cats 0;and dogs"),
        ("cats \x9dand dogs", "cats and dogs"),
        ("cats \x9dand \x9dtitle\x07dogs", "cats and dogs"),
        ("\x1bcreset", "reset"),
        ("bell\x07 null\x00", "bell null"),
        ("left\u202eright\u200b\ufeff", "leftright"),
        ("half \udce9 pair", "half pair"),
        ("non\u00a0breaking\u2028line", "non breaking line"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("é 日本 “x”", "é 日本 “x”"),
    ],
)
def test_text_is_made_a_plain_line(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@given(st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x9d[];m\x07 "))))
def test_a_clean_text_is_one_line_without_controls_and_stays_so(text: str) -> None:
    cleaned = clean_text(text)
    assert not [s for s in cleaned if unicodedata.category(s) in ("Cc", "Cs", "Cn", "Co")]
    assert cleaned == " ".join(cleaned.split())
    assert len(cleaned.splitlines()) <= 1
    assert clean_text(cleaned) == cleaned


def test_the_schema_is_one_that_strict_modes_take() -> None:
    """All keys required, no others allowed, and no keyword that some providers refuse."""
    schema = LabelReply.model_json_schema()
    assert schema["required"] == list(schema["properties"]) == list(GOOD)
    assert schema["additionalProperties"] is False
    said = {"type", "title", "description", "properties", "required", "additionalProperties"}
    assert set(schema) == said
    assert "`" not in schema["description"]
    for described in schema["properties"].values():
        assert set(described) == {"type", "title", "description"}
        assert described["type"] == "string"


ASKED = (Message("system", "the rules"), Message("user", "the evidence"))


def test_the_repair_shows_the_reply_and_says_what_was_wrong_with_it() -> None:
    messages = repair_messages(ASKED, '{"label": \x1b[31m"x"', BROKEN_OFF)
    assert messages[:2] == ASKED
    assert [message.role for message in messages[2:]] == ["assistant", "user"]
    assert messages[2].content == '{"label": "x"'
    assert f"could not be used: {BROKEN_OFF}." in messages[3].content
    assert "$" not in messages[3].content


@pytest.mark.parametrize("reply", [None, "", " \n", "x" * 100_000, "\udce9" * 10, "$reason"])
def test_a_repair_can_be_sent_whatever_the_reply_was(reply: str | None) -> None:
    *_, answer, request = repair_messages(ASKED, reply, EMPTY)
    assert 0 < len(answer.content.encode()) < 5_000
    assert EMPTY in request.content
