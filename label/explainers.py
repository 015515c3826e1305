"""Explainers: from the contexts of a feature to a label.

The embedded one, `token_lookup`, needs no model: its label lists the tokens at which the feature
is strongest. That is a summary of counts and is not presented as anyone's understanding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..store.records import FeatureContexts, Label
from .token_lookup import EXPLAINER, TokenLookup, fit_token_lookup

NEVER_ACTIVE = "never active in the explain split"
NO_TOKEN_STANDS_OUT = "no token's mean activation is above the mean of all tokens"

# What a label lists: at most so many tokens, each with at least this share of the strongest's
# mean. Weaker ones are as a rule tokens that stood beside the strong ones once.
MAX_TOKENS = 6
MIN_SHARE_OF_STRONGEST = 0.25

# Tokens that display alike take one place: of so many the list is drawn.
_CANDIDATES = 10 * MAX_TOKENS

_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


class Explainer(Protocol):
    """Writes labels from contexts of the `explain` split.

    Attributes:
        name: what its labels are stored under.
        version: changes whenever the same contexts may give another label.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def version(self) -> str: ...  # noqa: D102

    def explain(self, contexts: FeatureContexts, token_text: Callable[[int], str]) -> Label:
        """A label, or the record of why there is none; `token_text` spells a token."""
        ...


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A token as a reader sees it, and the activation expected at it."""

    text: str
    mean: float


@dataclass(frozen=True, slots=True)
class TokenLookupExplainer:
    """Labels a feature with the tokens at which it is strongest."""

    name: str = EXPLAINER
    version: str = "1"

    def explain(self, contexts: FeatureContexts, token_text: Callable[[int], str]) -> Label:
        """The strongest tokens, quoted; a failure where the feature never fires."""
        if not contexts.active.activations.any():
            return self._label(contexts, reason=NEVER_ACTIVE)
        lookup = fit_token_lookup(contexts)
        tokens = name_strongest(lookup, token_text)
        if not tokens:
            return self._label(contexts, reason=NO_TOKEN_STANDS_OUT)
        text = ", ".join(f"“{token.text}”" for token in tokens)
        listed = ", ".join(f"“{token.text}” ({token.mean:.3g})" for token in tokens)
        explanation = (
            f"The tokens with the highest mean activation: {listed}; "
            f"the mean of all tokens is {lookup.global_mean:.3g}. "
            f"Looked up in {len(contexts.active):,} windows in which the feature fires "
            f"and {len(contexts.silent):,} in which it does not."
        )
        return self._label(contexts, text, explanation)

    def _label(
        self,
        contexts: FeatureContexts,
        text: str | None = None,
        explanation: str | None = None,
        reason: str | None = None,
    ) -> Label:
        return Label(
            feature_id=contexts.feature_id,
            text=text,
            explanation=explanation,
            explainer=self.name,
            prompt_version=self.version,
            window_ids=tuple(np.sort(contexts.active.windows.window_id).tolist()),
            status="done" if reason is None else "failed",
            reason=reason,
        )


EMBEDDED: Mapping[str, Explainer] = {EXPLAINER: TokenLookupExplainer()}
"""The explainers that need no language model, by name."""


def name_strongest(lookup: TokenLookup, token_text: Callable[[int], str]) -> list[NamedToken]:
    """The tokens worth listing, strongest first, those that display alike named once."""
    candidates = lookup.strongest(_CANDIDATES)
    if not candidates:
        return []
    least = max(MIN_SHARE_OF_STRONGEST * candidates[0].mean, lookup.global_mean)
    named: dict[str, float] = {}
    for token in candidates:
        if token.mean > lookup.global_mean and token.mean >= least:
            named.setdefault(make_visible(token_text(token.token_id)), token.mean)
    return [NamedToken(text, mean) for text, mean in list(named.items())[:MAX_TOKENS]]


def make_visible(text: str) -> str:
    """A token's text for reading: outer spaces gone, what cannot be seen spelled out.

    A token of nothing but spaces shows them as "␣"; more than three of one invisible sign are
    counted, as in "␣×16".
    """
    spaced = text.replace("▁", " ")
    trimmed = spaced.strip(" ")
    shown = trimmed or spaced.replace(" ", "␣")
    signs = [_spell(sign) for sign in shown]
    if len(signs) > 3 and len(set(signs)) == 1 and (not trimmed or signs[0] != shown[0]):
        return f"{signs[0]}×{len(signs)}"
    return "".join(signs)


def _spell(sign: str) -> str:
    if sign in _VISIBLE or sign.isprintable():
        return _VISIBLE.get(sign, sign)
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
