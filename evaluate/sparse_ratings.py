"""Ratings of many windows by one answer: what is asked, and what is read in it.

Windows are numbered, and tokens within each. The answer has a line for every window: its number, a
tab, and either a hyphen or the tokens at which the feature is active, as `12=7`. So silence, which
is nearly everything, costs a few tokens a window. A token that is left out is 0 only where its
window has a line: what was not acknowledged is not known.

A token takes its number, itself and a line break; a fourth sign stands only before tokens without
a space at the beginning (`12 the`, `13+ing`), where the number might run into them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from ..label.chat import ChatReply, Message
from ..label.corpus_data import (
    break_control_tokens,
    line,
    make_harmless,
    show_on_one_line,
    show_text,
)
from ..label.labelling import CUT_OFF, WITHHELD
from ..label.prompts import estimate_tokens
from .rating_calls import Digits, Rated, digits_at, expected_value
from .token_ratings import digits_of

NO_LINE = "the answer has no line for the window"
NOT_IN_FORM = "the window's line is not in the form that was asked for"
NO_DIGIT = "a token of the window is rated with more or other than one digit"
NO_SUCH_TOKEN = "a token is rated that the window does not have"
TWO_VALUES = "the window, or a token of it, is rated twice and differently"
NO_SUCH_WINDOW = "the answer rates a window that was not shown, so that none of it can be trusted"

# A line of an answer: the number of a window, something between, the rest.
_LINE = re.compile(
    r"^[ \t]*(?:window[ \t]*)?(\d{1,4})[ \t]*[\t :|][ \t]*(\S.*?)[ \t\r]*$",
    re.MULTILINE | re.IGNORECASE,
)
_ITEM = re.compile(r"[^\s,;]+")
_RATING = re.compile(r"(\d{1,4})[=:](.+)")
_NOWHERE = frozenset("-–—")
# What a number of lines of ours takes, and room for a few words.
_TOKENS_AROUND = 60
_TOKENS_A_WINDOW = 24
_TOKENS_A_RATING, _TOKENS_A_LINE = 6, 6
# Models that write no more in one reply refuse a request for more. At this, every window of
# sixteen may have forty rated tokens.
_MOST_REPLY_TOKENS = 4096
_WORDS_AGAIN = (
    "An answer to these windows was not usable: a line was missing, or named a token that the "
    "window does not have, or held other than digits from 1 to 9. Answer with one line for each "
    "window above and nothing else, in the form described."
)


@dataclass(frozen=True, slots=True)
class ShownWindow:
    """A window as a prompt shows it.

    Attributes:
        before: the text before it; empty where there is none.
        tokens: its tokens, a line each.
        n_tokens: how many.
    """

    before: str
    tokens: str
    n_tokens: int

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens it takes, rather too many."""
        return _TOKENS_A_WINDOW + estimate_tokens(self.before) + estimate_tokens(self.tokens)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why an answer says nothing of a window."""

    reason: str


@cache
def _static_text() -> str:
    folder = files("scopenote.evaluate").joinpath("prompt_texts")
    return folder.joinpath("rate_windows.txt").read_text("utf-8")


def show_window(prefix: Sequence[str], tokens: Sequence[str]) -> ShownWindow:
    """A window from the texts of the tokens before it and of its own."""
    lines = [
        f"{number}{text if text.startswith(' ') else '+' + text}\n"
        for number, text in enumerate(
            (show_on_one_line(make_harmless(token)) for token in tokens), start=1
        )
    ]
    return ShownWindow(show_text(prefix) if prefix else "", "".join(lines), len(tokens))


def sparse_messages(
    label: str, windows: Sequence[ShownWindow], is_again: bool = False
) -> tuple[Message, ...]:
    """What is sent to have windows rated.

    Args:
        label: the label's text.
        windows: numbered from 1 in this order.
        is_again: whether an answer to them was not usable.
    """
    shown = [line("label"), show_on_one_line(make_harmless(label)), "\n", line("end of label")]
    for number, window in enumerate(windows, start=1):
        if window.before:
            shown += [line(f"before window {number}"), window.before, "\n"]
        shown += [line(f"window {number}"), window.tokens]
    shown.append(line(f"end of {len(windows)} windows"))
    asked = break_control_tokens("".join(shown))
    # After our last line nothing of the corpus can stand.
    return (
        Message("system", _static_text()),
        Message("user", asked + "\n" + _WORDS_AGAIN if is_again else asked),
    )


def estimated_prompt_tokens(label: str) -> int:
    """About how many tokens a prompt takes without any window."""
    return _TOKENS_AROUND + estimate_tokens(_static_text()) + estimate_tokens(label)


def most_sparse_reply_tokens(windows: Sequence[ShownWindow]) -> int:
    """What an answer may take: enough for every token to be rated, up to what models write."""
    ratings = _TOKENS_A_RATING * sum(window.n_tokens for window in windows)
    return min(_TOKENS_AROUND + _TOKENS_A_LINE * len(windows) + ratings, _MOST_REPLY_TOKENS)


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a line says: by token the digit and its place in the text; or why it says nothing."""

    digits: Mapping[int, str]
    places: Mapping[int, int]
    reason: str | None = None


def read_sparse(
    text: str | None,
    n_tokens: Sequence[int],
    finish_reason: str | None = None,
    digits: Digits = (),
) -> list[Rated | Unusable]:
    """What an answer says of each window.

    Args:
        text: the answer.
        n_tokens: of each window that was to be rated.
        finish_reason: why it ended; of one that was cut short the last line is not read.
        digits: as `kept_digits` gives them; where there are none, the digit itself counts.
    """
    cut = {"length": CUT_OFF, "content_filter": WITHHELD}.get(finish_reason or "")
    lines = (text or "").rpartition("\n")[0] if cut else text or ""
    stated: dict[int, _Stated] = {}
    for number, found in _lines(lines):
        if not 1 <= number <= len(n_tokens):
            if found.reason is None:
                # Who counts other windows than there are may have counted all of them otherwise.
                return [Unusable(NO_SUCH_WINDOW)] * len(n_tokens)
        elif number not in stated:
            stated[number] = found
        elif stated[number].digits != found.digits or found.reason:
            stated[number] = _Stated({}, {}, stated[number].reason or found.reason or TWO_VALUES)
    options_at = dict(digits)
    return [
        _rated(stated[number], n, options_at) if number in stated else Unusable(cut or NO_LINE)
        for number, n in enumerate(n_tokens, start=1)
    ]


def _rated(
    stated: _Stated, n_tokens: int, options_at: Mapping[int, Sequence[tuple[int, float]]]
) -> Rated | Unusable:
    if stated.reason is not None:
        return Unusable(stated.reason)
    if any(not 1 <= number <= n_tokens for number in stated.digits):
        return Unusable(NO_SUCH_TOKEN)
    values = [0.0] * n_tokens
    masses: list[float] = []
    for number, digit in stated.digits.items():
        options = options_at.get(stated.places[number])
        if options:
            values[number - 1], mass = expected_value(options)
            masses.append(mass)
        else:
            values[number - 1] = float(digit)
    return Rated(tuple(values), fmean(masses) if masses else None)


def _lines(text: str) -> Iterator[tuple[int, _Stated]]:
    """The windows that lines of an answer are about, and what they say."""
    for found in _LINE.finditer(text):
        yield int(found[1]), _read_line(found[2], found.start(2))


def _read_line(rest: str, start: int) -> _Stated:
    if rest in _NOWHERE:
        return _Stated({}, {})
    digits: dict[int, str] = {}
    places: dict[int, int] = {}
    for item in _ITEM.finditer(rest):
        rating = _RATING.fullmatch(item[0])
        if rating is None:
            return _Stated(digits, places, NOT_IN_FORM)
        number, value = int(rating[1]), rating[2]
        if not re.fullmatch("[0-9]", value):
            return _Stated(digits, places, NO_DIGIT)
        if digits.setdefault(number, value) != value:
            return _Stated(digits, places, TWO_VALUES)
        places.setdefault(number, start + item.start() + rating.start(2))
    return _Stated(digits, places)


def kept_digits(reply: ChatReply) -> list[Any] | None:
    """What is kept of the log probabilities of an answer of either form, dense or sparse.

    One function for the record of calls, which does not know who asked: a line that `digits_of`
    reads is none of a sparse answer, and the other way round.

    Returns:
        Pairs as `digits_of` gives them; None where the reply has no log probabilities, or they
        are those of another text.
    """
    dense = digits_of(reply)
    if dense is None:
        return None
    places = (place for _, stated in _lines(reply.text or "") for place in stated.places.values())
    return sorted([*dense, *(digits_at(reply, sorted(places)) or ())], key=_place)


def _place(pair: list[Any]) -> int:
    place: int = pair[0]
    return place
