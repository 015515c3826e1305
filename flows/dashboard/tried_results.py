"""What came of trying a feature, as its page shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...store.byte_pieces import join_bytes
from ..visible_text import NEWLINE, visible

if TYPE_CHECKING:
    from ...extract.own_text import OwnText
    from ...extract.steering import Comparison, Continuation

LEVELS = 10
_N_STRONGEST = 8


@dataclass(frozen=True, slots=True)
class TriedToken:
    """A token of one's own text.

    Attributes:
        text: as it is shown, a line broken after each newline.
        name: the same on one line.
        place: its number, from 1.
        level: of its shade, 1 to 10; 0 where the feature is off.
    """

    text: str
    name: str
    place: int
    value: float
    level: int


@dataclass(frozen=True, slots=True)
class TriedText:
    """A text of one's own, shaded.

    Attributes:
        n_active: tokens on which the feature is active.
        largest: its largest activation here.
        strongest: where it is active, the strongest first, as many as fit.
        n_sequences: how often the model began anew.
    """

    tokens: tuple[TriedToken, ...]
    n_active: int
    largest: float
    strongest: tuple[TriedToken, ...]
    n_sequences: int


@dataclass(frozen=True, slots=True)
class TriedContinuation:
    """What the model wrote, as it is shown; `has_ended`: the model itself ended it."""

    text: str
    has_ended: bool


@dataclass(frozen=True, slots=True)
class TriedNext:
    """A token that may come next, with its probability on either side."""

    name: str
    plain: float
    steered: float


@dataclass(frozen=True, slots=True)
class TriedSteering:
    """A prompt, and what the model writes after it without and with the feature turned up."""

    prompt: str
    plain: TriedContinuation
    steered: TriedContinuation
    next_tokens: tuple[TriedNext, ...]

    @property
    def is_same(self) -> bool:
        """Whether both write the same."""
        return self.plain == self.steered


def shade_text(own: OwnText, peak: float | None) -> TriedText:
    """The text with a shade for each token.

    Args:
        own: read for one feature.
        peak: the feature's largest activation in the run, at which shades are full, unless it
            is larger here.
    """
    texts, values = join_bytes(own.tokens, own.activations[0].tolist())
    largest = max(values)
    full = max(peak or 0.0, largest)
    tokens = tuple(
        TriedToken(_in_lines(text), _name(text), place, value, shade_level(value, full))
        for place, (text, value) in enumerate(zip(texts, values, strict=True), start=1)
    )
    active = sorted((token for token in tokens if token.level), key=lambda each: -each.value)
    return TriedText(tokens, len(active), largest, tuple(active[:_N_STRONGEST]), own.n_sequences)


def shade_level(value: float, full: float) -> int:
    """The shade of an activation, from 1 to 10 at `full`; 0 where there is none."""
    if value <= 0:
        return 0
    return max(1, min(LEVELS, math.ceil(LEVELS * value / full)))


def show_steering(found: Comparison) -> TriedSteering:
    """Both continuations and the next tokens, as they are shown."""
    return TriedSteering(
        prompt=_in_lines(_joined(found.prompt)),
        plain=_continuation(found.plain),
        steered=_continuation(found.steered),
        next_tokens=tuple(
            TriedNext(_name(token.text), token.probability, token.steered_probability)
            for token in found.next_tokens
        ),
    )


def _continuation(written: Continuation) -> TriedContinuation:
    return TriedContinuation(_in_lines(_joined(written.tokens)), written.has_ended)


def _joined(tokens: Sequence[str]) -> str:
    return "".join(join_bytes(tokens, [0.0] * len(tokens))[0])


def _in_lines(text: str) -> str:
    return visible(text).replace(NEWLINE, f"{NEWLINE}\n")


def _name(text: str) -> str:
    """The token on one line, its spaces as signs where it is nothing else."""
    return visible(text) if text.strip(" ") else "␣" * len(text)
