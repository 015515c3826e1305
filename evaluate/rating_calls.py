"""What simulators that ask a model have in common: what a call gives, and what a reply is worth.

Left out: how a model is asked, and the form of its answers (`token_ratings`, `sparse_ratings`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..label.call_records import reason_of
from ..label.chat import ChatReply, TokenLogprob
from ..label.labelling import DECLINED, NO_REPLY, WITHHELD
from ..store.records import Call
from .simulators import Simulated

Digits = Sequence[tuple[int, Sequence[tuple[int, float]]]]
"""By their place in an answer, the digits that might have stood there, with log probabilities."""


@dataclass(frozen=True, slots=True)
class Rated:
    """A window's ratings.

    Attributes:
        values: one a token, 0 to 9.
        mass: mean share of probability that lay on digits, where a digit was written; None
            without log probabilities.
    """

    values: tuple[float, ...]
    mass: float | None


def why_unread(call: Call) -> str | None:
    """Why there is nothing to be read in a call's reply."""
    if call.reply is None:
        return f"{NO_REPLY}: {(reason_of(call) or 'unknown').replace('_', ' ')}"
    if not call.reply["text"]:
        if call.reply["refusal"]:
            return DECLINED
        if call.reply["finish_reason"] == "content_filter":
            return WITHHELD
    return None


def stored_digits(call: Call) -> Digits:
    """The digits that were kept of a reply's log probabilities; none where it had none."""
    return [
        (place, [(digit, logprob) for digit, logprob in options])
        for place, options in call.reply.get("logprobs") or ()
    ]


def simulated_from(outcomes: Sequence[Rated | str], shape: tuple[int, ...]) -> Simulated:
    """Predictions of windows, padded to this shape, from their ratings or reasons of failure."""
    predicted = np.zeros(shape, dtype=np.float32)
    failures: dict[int, str] = {}
    mass: dict[int, float] = {}
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, str):
            failures[row] = outcome
            continue
        predicted[row, : len(outcome.values)] = outcome.values
        if outcome.mass is not None:
            mass[row] = outcome.mass
    return Simulated(predicted, failures, mass)


def expected_value(options: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The mean of digits by their probabilities, and how much these sum up to."""
    highest = max(logprob for _, logprob in options)
    weights = [math.exp(logprob - highest) for _, logprob in options]
    total = sum(weights)
    mean = sum(digit * weight for (digit, _), weight in zip(options, weights, strict=True)) / total
    return mean, min(1.0, total * math.exp(highest))


def digits_at(reply: ChatReply, places: Iterable[int]) -> list[Any] | None:
    """Of a reply's log probabilities those of digits at some places, to be stored with it.

    Args:
        reply: as it came.
        places: of digits in its text, in ascending order.

    Returns:
        Pairs of a place and [digit, log probability] pairs; None where the reply has no log
        probabilities, or they are those of another text.
    """
    if reply.logprobs is None or reply.text is None:
        return None
    if "".join(each.token for each in reply.logprobs) != reply.text:
        return None
    starts: list[int] = []
    at = 0
    for each in reply.logprobs:
        starts.append(at)
        at += len(each.token)
    found: list[Any] = []
    number = 0
    for place in places:
        while number + 1 < len(starts) and starts[number + 1] <= place:
            number += 1
        options = _options(reply.logprobs[number], place - starts[number])
        if options:
            found.append([place, options])
    return found


def _options(token: TokenLogprob, place: int) -> list[list[float]]:
    """Which digits might have stood at a place of a token, the rest of it being the same."""
    head, tail = token.token[:place], token.token[place + 1 :]
    options: dict[int, float] = {}
    for text, logprob in ((token.token, token.logprob), *token.alternatives):
        inner = text[len(head) : len(text) - len(tail)]
        is_alike = text == head + inner + tail
        if is_alike and re.fullmatch("[0-9]", inner) and math.isfinite(logprob):
            options.setdefault(int(inner), logprob)
    return [[digit, logprob] for digit, logprob in sorted(options.items())]
