"""All ratings of a window in one pass: what is written with slots, and how slots are read.

A line of the answer is a token's number, the token and its rating. The model is given its own
answer with a filler in place of every rating, and is not asked to write anything: at each slot its
probabilities of the ten digits, after label and text so far, say what it would have written there
(Bills et al. 2023, "Language models can explain neurons in language models", who wrote "unknown").
The filler says nothing of the truth, so ratings do not depend on each other. The rating is the
mean of the digits by their probabilities, renormalised; how much of the probability lay on digits
is kept beside it.

Left out: who computes the probabilities (`local_simulator`, `vllm_simulator`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float64

from ..label.chat import Message
from ..label.corpus_data import (
    break_control_tokens,
    line,
    make_harmless,
    show_on_one_line,
    show_text,
)
from ..store.records import Windows
from .rating_calls import Rated
from .token_ratings import HIGHEST

FILLER = "?"
"""What stands in every slot; the instructions say that it says nothing."""
DIGITS = "".join(map(str, range(HIGHEST + 1)))

NO_DIGIT = "some tokens have no digit among the likeliest ratings"
NOT_FINITE = "the model's numbers are not finite"


@dataclass(frozen=True, slots=True)
class WindowText:
    """A window as a simulator reads it.

    Attributes:
        before: the texts of the tokens before it, shown and not rated.
        tokens: the texts of its own.
    """

    before: tuple[str, ...]
    tokens: tuple[str, ...]


@cache
def instructions() -> Message:
    """What all requests begin with."""
    folder = files("scopenote.evaluate").joinpath("prompt_texts")
    return Message("system", folder.joinpath("rate_slots.txt").read_text("utf-8"))


def slot_messages(label: str, before: Sequence[str]) -> tuple[Message, Message]:
    """What is sent before the answer.

    Args:
        label: the label's text.
        before: the texts of the tokens before the window.
    """
    shown = line("label") + show_on_one_line(make_harmless(label)) + "\n" + line("end of label")
    text = line("text before") + show_text(before) + "\n" if before else ""
    return instructions(), Message("user", break_control_tokens(shown + text))


def before_slots(tokens: Sequence[str]) -> list[str]:
    """The answer, cut at its slots: what stands before each of them, fillers left out."""
    shown = (
        f"{number}\t{show_on_one_line(make_harmless(token))}\t"
        for number, token in enumerate(tokens, start=1)
    )
    # No control token goes over the end of a line, where a slot is.
    return [("\n" if n else "") + break_control_tokens(text) for n, text in enumerate(shown)]


def filled_answer(tokens: Sequence[str]) -> str:
    """The answer with a filler in every slot, the last one at its end."""
    return "".join(text + FILLER for text in before_slots(tokens))


def read_slots(logprobs: Float64[np.ndarray, "T 10"]) -> Rated | str:
    """A window's ratings, or why it has none.

    Args:
        logprobs: natural log probabilities of the digits 0 to 9 at each slot; minus infinity for a
            digit of which nothing is known but that it is unlikely.
    """
    if np.isnan(logprobs).any() or np.isposinf(logprobs).any():
        return NOT_FINITE
    highest = logprobs.max(axis=1, keepdims=True)
    if np.isneginf(highest).any():
        return NO_DIGIT
    weights = np.exp(logprobs - highest)
    totals = weights.sum(axis=1)
    values = weights @ np.arange(HIGHEST + 1) / totals
    masses = np.minimum(1.0, totals * np.exp(highest[:, 0]))
    return Rated(tuple(values.tolist()), float(masses.mean()) if len(masses) else None)


def texts_of(
    windows: Windows,
    token_text: Callable[[int], str],
    prefix_of: Callable[[int], Sequence[int]],
) -> list[WindowText]:
    """The windows' texts, padding left out.

    Args:
        windows: of the subject model's tokens.
        token_text: spells one of them.
        prefix_of: the tokens before a window, by its id.
    """
    return [
        WindowText(
            before=tuple(map(token_text, prefix_of(int(window_id)))),
            tokens=tuple(map(token_text, token_ids[token_ids >= 0].tolist())),
        )
        for window_id, token_ids in zip(windows.window_id, windows.token_ids, strict=True)
    ]
