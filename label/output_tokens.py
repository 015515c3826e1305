"""The explainer `output`: what a feature does, from the output tokens that it raises and lowers.

It sees no context. Such a label says what follows from the feature, and is no prediction of when
it is active: it scores low where the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..store.feature_page import ShownToken
from ..store.records import FeatureContexts
from .corpus_data import break_control_tokens, line, make_harmless, show_on_one_line
from .prompts import FeatureTexts, NoPrompt, RenderedPrompt, StaticPart

NAME = "output"
NO_OUTPUT_TOKENS = "the output tokens of the feature are not known"

STATIC = StaticPart((NAME, "answer"))


def render(contexts: FeatureContexts, texts: FeatureTexts) -> RenderedPrompt | NoPrompt:
    """The prompt for a feature, or why there is none; its contexts are not looked at."""
    if not texts.raised and not texts.lowered:
        return NoPrompt(NO_OUTPUT_TOKENS)
    return STATIC.ask((), list_output_tokens(texts))


def list_output_tokens(texts: FeatureTexts) -> str:
    """The two lists between lines of ours."""
    return (
        line("output tokens")
        + line("raised")
        + _list(texts.raised)
        + line("lowered")
        + _list(texts.lowered)
        + line("end of output tokens")
    )


def _list(tokens: Sequence[ShownToken]) -> str:
    listed = ""
    for token in tokens:
        effect = "" if token.logit is None else f"\t{token.logit:+.3g}"
        listed += f"{show_on_one_line(make_harmless(token.text))}{effect}\n"
    return break_control_tokens(listed)
