"""What a model's reply to an explainer's prompt comes to: a label, or why there is none.

A reply is a JSON object of three texts. It is only ever text: terminal escapes and control
characters are removed, nothing in it is followed or completed. A reply that does not keep the
rules is refused with a reason, which is the same sentence for the same fault so that failures can
be counted; it is never cut to size, because half a label is another label.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from string import Template
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from .chat import Message
from .prompts import read_prompt

MAX_LABEL_WORDS = 15
# Fifteen words in any language; a label is one line of a table.
MAX_LABEL_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 2_000
# A reply of this length is no JSON object of three short texts.
MAX_REPLY_CHARACTERS = 50_000

EMPTY = "the reply is empty"
TOO_LONG = f"the reply has more than {MAX_REPLY_CHARACTERS:,} characters"
NO_OBJECT = "the reply holds no JSON object"
BROKEN_OFF = "the reply's JSON object is broken off or damaged"
SEVERAL = "the reply holds several answers"

# Control sequences of terminals (ECMA-48): CSI with its parameters, strings such as OSC where
# they end, and two-character escapes; in the one-byte forms as well. A string without an end
# would take the rest of the label with it: only its beginning goes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
# Joiners belong to the spelling of Persian, of Indian scripts and of emoji.
_JOINERS = "\u200c\u200d"
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
_SHOWN_REPLY_CHARACTERS = 4_000
_FAULTS = {"missing": "is missing", "string_type": "is no text"}  # pydantic's names, our words


class LabelReply(BaseModel):
    """A label as a model gives it; `model_json_schema()` goes into the request.

    The schema has only what every provider's strict mode takes; lengths are checked here.
    """

    model_config = ConfigDict(
        frozen=True,
        title="label",
        json_schema_extra={
            "additionalProperties": False,
            "description": "A label for the feature, and the reasons for it.",
        },
    )

    # Reasons come before the label because a model writes in this order.
    explanation: str = Field(description="What the evidence has in common, and how sure you are.")
    near_miss: str = Field(description="What a hasty reader would count in, and is none.")
    label: str = Field(description=f"The label, at most {MAX_LABEL_WORDS} words.")

    @field_validator("explanation", "near_miss", "label")
    @classmethod
    def _is_clean(cls, text: str) -> str:
        cleaned = clean_text(text)
        if shows_nothing(cleaned):
            raise PydanticCustomError("empty", "is empty")
        if len(cleaned) > MAX_TEXT_CHARACTERS:
            raise PydanticCustomError("long", f"has more than {MAX_TEXT_CHARACTERS:,} characters")
        return cleaned

    @field_validator("label")
    @classmethod
    def _is_short(cls, label: str) -> str:
        if len(label.split()) > MAX_LABEL_WORDS:
            raise PydanticCustomError("words", f"has more than {MAX_LABEL_WORDS} words")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise PydanticCustomError("long", f"has more than {MAX_LABEL_CHARACTERS} characters")
        return label


@dataclass(frozen=True, slots=True)
class BadReply:
    """A reply that cannot be used, and why: the reason of a stored failure."""

    reason: str


def parse_reply(text: str | None) -> LabelReply | BadReply:
    """The label in a reply: a JSON object alone, in a code fence, or among other words.

    Of several objects none is chosen, unless they say the same.
    """
    if text is None or not text.strip():
        return BadReply(EMPTY)
    if len(text) > MAX_REPLY_CHARACTERS:
        return BadReply(TOO_LONG)
    keys = LabelReply.model_fields.keys()
    answers = {_validate(found) for found in _objects_in(text) if keys & found}
    if not answers:
        is_begun = "{" in text and any(f'"{key}"' in text for key in keys)
        return BadReply(BROKEN_OFF if is_begun else NO_OBJECT)
    return answers.pop() if len(answers) == 1 else BadReply(SEVERAL)


def repair_messages(
    asked: tuple[Message, ...], reply: str | None, reason: str
) -> tuple[Message, ...]:
    """The one attempt at repair: the conversation so far, and what was wrong with the reply.

    The beginning is that of the first request, which providers may have kept. A long reply is
    shown by its beginning.
    """
    shown = clean_text(reply or "")[:_SHOWN_REPLY_CHARACTERS]
    request = Template(read_prompt("repair")).substitute(reason=reason)
    # Chat templates want the roles in turn, and refuse an empty message.
    return (*asked, Message("assistant", shown or "(no answer)"), Message("user", request))


def clean_text(text: str) -> str:
    """A text on one line, without terminal escapes, control and invisible characters."""
    # Most texts are, and a million of them are cleaned in a second.
    if text.isprintable():
        return " ".join(text.split())
    without = _ESCAPES.sub("", text)
    spaced = "".join(" " if sign.isspace() else sign for sign in without)
    kept = [sign for sign in spaced if sign in _JOINERS or not _is_invisible(sign)]
    return " ".join("".join(kept).split())


def shows_nothing(cleaned: str) -> bool:
    """Whether a cleaned text is empty, or of joiners, accents and blanks by themselves."""
    return not any(unicodedata.category(sign)[0] in "LNPS" for sign in cleaned)


def _is_invisible(sign: str) -> bool:
    return unicodedata.category(sign) in _INVISIBLE


def _objects_in(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text that lie in no other, in order."""
    decoder = json.JSONDecoder(strict=False)  # a line break within a text is no fault
    found: list[dict[str, Any]] = []
    begin = text.find("{")
    while begin >= 0:
        try:
            value, end = decoder.raw_decode(text, begin)
        except ValueError:  # no JSON, or a number of too many digits to read
            end = begin + 1
        except RecursionError:
            break  # no answer of ours is nested, and each brace of it would be tried again
        else:
            found.append(value)
        begin = text.find("{", end)
    return found


def _validate(found: dict[str, Any]) -> LabelReply | BadReply:
    try:
        return LabelReply.model_validate(found)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        return BadReply(f"`{fault['loc'][0]}` {_FAULTS.get(fault['type'], fault['msg'])}")
