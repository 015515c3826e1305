"""The explainer `max_activations`: contexts as lists of tokens with activations from 0 to 10.

After Bills et al. (2023, "Language models can explain neurons in language models"), but with
contexts of all strengths. The most exact of the explainers, and the one with the longest prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..store.records import FeatureContexts
from .chosen_contexts import choose_contexts
from .context_blocks import write_blocks
from .corpus_data import ShownPiece, line, show_on_one_line
from .explainers import NEVER_ACTIVE
from .prompts import FeatureTexts, NoPrompt, RenderedPrompt, StaticPart

NAME = "max_activations"
# Token, tab, number and line break: a context of 64 tokens is some 250 tokens long.
N_CONTEXTS = 12

STATIC = StaticPart((NAME, "when_active", "answer"))


def render(contexts: FeatureContexts, texts: FeatureTexts) -> RenderedPrompt | NoPrompt:
    """The prompt for a feature, or why there is none."""
    chosen = choose_contexts(contexts, N_CONTEXTS)
    if not len(chosen):
        return NoPrompt(NEVER_ACTIVE)
    return STATIC.ask(write_blocks(chosen, texts, _list_tokens))


def _list_tokens(pieces: Sequence[ShownPiece]) -> str:
    listed = [f"{show_on_one_line(piece.text)}\t{piece.strength}\n" for piece in pieces]
    return line("tokens and strengths") + "".join(listed)
