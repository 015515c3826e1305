"""Ratings of a window's tokens by a language model: what it is asked, and what it answers.

Tokens are numbered, and the answer is a line for each: number, tab, a digit from 0 to 9. One digit
is one token with every tokenizer, so that its log probabilities give an expected value: the mean
of the digits by their probabilities, renormalised (Bills et al. 2023, "Language models can explain
neurons in language models"). Answers are joined to tokens by number, never by place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from ..label.chat import ChatReply, Message
from ..label.corpus_data import (
    break_control_tokens,
    line,
    make_harmless,
    show_on_one_line,
    show_text,
)
from .rating_calls import Digits, digits_at, expected_value

HIGHEST = 9
"""The rating that stands for the feature's highest activation."""

# A line of an answer: number, something between, the rest.
_LINE = re.compile(r"^[ \t]*(\d{1,4})[ \t]*[\t:|,=][ \t]*(\S.*?)[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ratings:
    """What an answer says of tokens, numbered from 1.

    Attributes:
        values: the rating of each token that has a usable one.
        mass: of those with log probabilities, how much of the probability lay on digits.
        n_unusable: lines with a number that no token has, a value that is no digit, or several
            values for one token.
    """

    values: Mapping[int, float]
    mass: Mapping[int, float] = field(default_factory=dict)
    n_unusable: int = 0


@cache
def _static_text() -> str:
    folder = files("scopenote.evaluate").joinpath("prompt_texts")
    return folder.joinpath("rate_tokens.txt").read_text("utf-8")


def rating_messages(
    label: str, prefix: Sequence[str], tokens: Sequence[str]
) -> tuple[Message, ...]:
    """What is sent to have a window rated.

    Args:
        label: the label's text.
        prefix: the texts of the tokens before the window, shown and not rated.
        tokens: the texts of the window's own.
    """
    before = line("text before") + show_text(prefix) + "\n" if prefix else ""
    numbered = "".join(
        f"{number}\t{show_on_one_line(make_harmless(token))}\n"
        for number, token in enumerate(tokens, start=1)
    )
    shown = (
        line("label")
        + show_on_one_line(make_harmless(label))
        + "\n"
        + line("end of label")
        + before
        + line("tokens")
        + numbered
        + line("end of tokens")
    )
    return (Message("system", _static_text()), Message("user", break_control_tokens(shown)))


def missing_messages(
    asked: tuple[Message, ...], answer: str | None, missing: Sequence[int]
) -> tuple[Message, ...]:
    """The one attempt at the tokens left out: the conversation so far, and their numbers."""
    numbers = ", ".join(map(str, missing))
    return (
        *asked,
        Message("assistant", answer or "(no answer)"),
        Message(
            "user",
            "Lines for these numbers are missing, or hold more or other than one digit from 0 to "
            f"9: {numbers}. Answer with these lines and nothing else, in the same form.",
        ),
    )


def read_ratings(text: str | None, n_tokens: int, digits: Digits = ()) -> Ratings:
    """The ratings in an answer.

    Args:
        text: the answer.
        n_tokens: how many tokens were to be rated.
        digits: by the place of the digit in the text, the digits that might have stood there with
            their log probabilities (`digits_of`); where there are none, the digit itself counts.
    """
    options_at = {place: options for place, options in digits}
    values: dict[int, float] = {}
    mass: dict[int, float] = {}
    stated: dict[int, str] = {}
    spoilt: set[int] = set()
    n_unusable = 0
    for found in _LINE.finditer(text or ""):
        number, value = int(found[1]), found[2]
        if not 1 <= number <= n_tokens or not re.fullmatch("[0-9]", value):
            n_unusable += 1
        elif number in stated:
            # Said twice alike is said; said twice otherwise is not.
            if stated[number] != value:
                n_unusable += 1
                spoilt.add(number)
        else:
            stated[number] = value
            options = options_at.get(found.start(2))
            if options:
                values[number], mass[number] = expected_value(options)
            else:
                values[number] = float(value)
    return Ratings(
        {number: value for number, value in values.items() if number not in spoilt},
        {number: share for number, share in mass.items() if number not in spoilt},
        n_unusable,
    )


def digits_of(reply: ChatReply) -> list[Any] | None:
    """Of a reply's log probabilities those that ratings are made of, to be stored with it.

    Returns:
        Pairs of the place of a digit in the text and [digit, log probability] pairs; None where
        the reply has no log probabilities, or they are those of another text.
    """
    lines = _LINE.finditer(reply.text or "")
    return digits_at(reply, [each.start(2) for each in lines if re.fullmatch("[0-9]", each[2])])
