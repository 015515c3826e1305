"""The explainer `highlighted`: contexts as text with the active stretches marked.

After Paulo et al. (2024, "Automatically interpreting millions of features in large language
models"). Reads as text does and is shorter than a list of tokens, so more contexts are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ..store.records import FeatureContexts
from .chosen_contexts import choose_contexts
from .context_blocks import write_blocks
from .corpus_data import ShownPiece, line, show_on_one_line
from .explainers import NEVER_ACTIVE
from .prompts import (
    ContextBlock,
    FeatureTexts,
    NoPrompt,
    RenderedPrompt,
    StaticPart,
)

NAME = "highlighted"
N_CONTEXTS = 20

STATIC = StaticPart((NAME, "when_active", "answer"))


def render(contexts: FeatureContexts, texts: FeatureTexts) -> RenderedPrompt | NoPrompt:
    """The prompt for a feature, or why there is none."""
    blocks = highlight(contexts, texts)
    if not blocks:
        return NoPrompt(NEVER_ACTIVE)
    return STATIC.ask(blocks)


def highlight(contexts: FeatureContexts, texts: FeatureTexts) -> tuple[ContextBlock, ...]:
    """The contexts to show, marked; none where the feature never fires."""
    return write_blocks(choose_contexts(contexts, N_CONTEXTS), texts, _mark)


def _mark(pieces: Sequence[ShownPiece]) -> str:
    text, strengths = "", ""
    for is_active, stretch in groupby(pieces, key=lambda piece: piece.is_active):
        together = list(stretch)
        content = "".join(piece.text for piece in together)
        if is_active:
            strongest = max(piece.strength for piece in together)
            strengths += f"{show_on_one_line(content)}\t{strongest}\n"
            content = f"⟪{content}⟫"
        text += content
    return line("text") + text + "\n" + line("strengths") + strengths
