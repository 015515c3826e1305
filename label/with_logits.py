"""The explainer `with_logits`: marked contexts beside the output tokens raised and lowered."""

from __future__ import annotations

from ..store.records import FeatureContexts
from .explainers import NEVER_ACTIVE
from .highlighted import highlight
from .output_tokens import NO_OUTPUT_TOKENS, list_output_tokens
from .prompts import FeatureTexts, NoPrompt, RenderedPrompt, StaticPart

NAME = "with_logits"

STATIC = StaticPart((NAME, "when_active", "answer"))


def render(contexts: FeatureContexts, texts: FeatureTexts) -> RenderedPrompt | NoPrompt:
    """The prompt for a feature, or why there is none."""
    blocks = highlight(contexts, texts)
    if not blocks:
        return NoPrompt(NEVER_ACTIVE)
    if not texts.raised and not texts.lowered:
        return NoPrompt(NO_OUTPUT_TOKENS)
    return STATIC.ask(blocks, list_output_tokens(texts))
