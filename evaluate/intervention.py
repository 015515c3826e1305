"""Does a feature do what its label says? What the model says more of while it is turned up.

Two figures for a label, both beside other features of the SAE that are turned up as strongly:

- `promoted_tokens` asks nobody: how often the tokens that the label names gain more log
  probability from the feature than from another one, corrected for chance.
- `told_apart` (`told_apart.py`) has a judge who sees only outputs find the feature's among others.

Both are 0 by chance, whatever a feature does to the model: a label that has nothing to do with its
feature is as likely to go with any other. They follow the output-centric evaluation of Gur-Arieh
et al. (2025, arXiv:2501.08319); Paulo et al. (2024, arXiv:2410.13928) measure instead how much
likelier the label itself becomes to a model that reads the output. Left out: how outputs come about
(`extract/steered_outputs.py`), and where a feature fires, which all other scores are about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from ..store.records import Label, Score
from ..store.steered_scores import INTERVENTION, PROMOTED
from .chance import above_chance
from .exam_figures import failed_rows
from .named_tokens import named_tokens
from .scored_windows import hash_of_windows

if TYPE_CHECKING:
    from ..extract.steered_outputs import SteeredOutputs


PROMPT_TOKENS, WRITTEN_TOKENS = 16, 12
"""Tokens of text that the model goes on from, and that it writes, at most."""
N_PROMOTED = 10
"""Tokens that are named as those that rise most."""
N_SHOWN = 3
"""Continuations that a judge is shown of a feature."""

NO_TOKEN = "no word of the label is a single token of the model"
NO_OTHER = "the SAE has no other feature that fires, to compare with"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How the model's tokens read.

    Attributes:
        token_of: the token that a text is written as; None where it is not one token.
        token_text: spells a token.
    """

    token_of: Callable[[str], int | None]
    token_text: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class SteeringTerms:
    """How the features of an SAE are turned up.

    Attributes:
        simulator: what the scores are stored under, such as `model/gemma-2-2b`.
        prompts: names of the windows whose first tokens the model goes on from.
        n_prompt_tokens: how many of each.
        strength: of what is added, as a share of how long the site's vectors are.
        norm: of what is added.
        seed: draws the other features and what is written.
        level: the intervals'.
    """

    simulator: str
    prompts: Sequence[int]
    n_prompt_tokens: int
    strength: float
    norm: float
    seed: int
    level: float


def score_promoted(
    label: Label,
    own: SteeredOutputs | str,
    others: Sequence[SteeredOutputs],
    vocabulary: Vocabulary,
    terms: SteeringTerms,
) -> Score:
    """The row of `promoted_tokens`; NULL with the reason where it is undefined.

    For each feature, the mean change of log probability over prompts and over the tokens that the
    label names. The value is 2p - 1, where p is the share of other features for which that is
    lower than for the label's own; the interval is exact over the other features, the prompts
    being what they are. What came out is kept in `design`, for whoever wants to see it and for
    `told_apart`.

    Args:
        label: what is judged. One that could not be made has its own reason.
        own: what comes out while the label's feature is turned up, or why nothing does.
        others: the same of other features of the SAE.
        vocabulary: of the model.
        terms: how it was done.
    """
    blank = _blank(label, terms)
    if label.status == "failed" or label.text is None:
        return failed_rows(blank, [PROMOTED], label.reason)[0]
    if isinstance(own, str):
        return failed_rows(blank, [PROMOTED], own)[0]
    tokens = named_tokens(label.text, vocabulary.token_of)
    filled = replace(
        blank,
        design={
            **blank.design,
            "tokens": [vocabulary.token_text(token) for token in tokens],
            "promoted": list(own.promoted),
            "written": list(own.written),
            "rivals": [_rival(place, other) for place, other in enumerate(others)],
        },
    )
    if not others:
        return failed_rows(filled, [PROMOTED], NO_OTHER)[0]
    if not tokens:
        return failed_rows(filled, [PROMOTED], NO_TOKEN)[0]
    gain, gains = _gain(own, tokens), [_gain(other, tokens) for other in others]
    wins = sum((gain > each) + 0.5 * (gain == each) for each in gains)
    found = above_chance(wins, len(others), 0.5, terms.level)
    return with_value(
        replace(filled, design={**filled.design, "gain": gain, "gain_of_others": mean(gains)}),
        found.value,
        found.interval.low,
        found.interval.high,
    )


def with_value(filled: Score, value: float, low: float, high: float) -> Score:
    """A row with this figure, whose null is 0 by construction."""
    return replace(
        filled,
        value=value,
        ci_low=low,
        ci_high=high,
        null_value=0.0,
        lift=value,
        lift_ci_low=low,
        lift_ci_high=high,
    )


def shown_prompts(trial: int, n_prompts: int, n: int) -> list[int]:
    """After which prompts is shown what was written: n of them, others in each trial."""
    return [(trial * n + place) % n_prompts for place in range(min(n, n_prompts))]


def _rival(place: int, other: SteeredOutputs) -> dict[str, object]:
    """What is kept of another feature's outputs: what the one trial shows that it is in."""
    prompts = shown_prompts(place // 2, len(other.written), N_SHOWN)
    return {
        "feature": other.feature,
        "promoted": list(other.promoted),
        "written": [other.written[prompt] for prompt in prompts],
    }


def _gain(outputs: SteeredOutputs, tokens: Sequence[int]) -> float:
    return float(outputs.changes[list(tokens)].mean(dtype=np.float64))


def _blank(label: Label, terms: SteeringTerms) -> Score:
    return Score(
        label_id=label.label_id,
        scorer=INTERVENTION,
        simulator=terms.simulator,
        metric=PROMOTED,
        split="score",
        value=None,
        n_windows=len(terms.prompts),
        n_tokens=len(terms.prompts) * terms.n_prompt_tokens,
        design={
            "strength": terms.strength,
            "norm": terms.norm,
            "seed": terms.seed,
            "level": terms.level,
        },
        contexts_hash=hash_of_windows(np.array(sorted(terms.prompts), dtype=np.uint64)),
    )
