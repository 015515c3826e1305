"""Contexts as a prompt shows them: each between two lines of ours, with the text before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .chosen_contexts import ChosenContexts
from .corpus_data import ShownPiece, break_control_tokens, line, show_pieces, show_text
from .prompts import ContextBlock, FeatureTexts


def write_blocks(
    chosen: ChosenContexts,
    texts: FeatureTexts,
    write_body: Callable[[Sequence[ShownPiece]], str],
) -> tuple[ContextBlock, ...]:
    """One block a context, numbered from 1; `write_body` writes the context's own tokens."""
    blocks: list[ContextBlock] = []
    for row, window_id in enumerate(chosen.window_ids):
        is_token = chosen.token_ids[row] >= 0
        pieces = show_pieces(
            [texts.token_text(token_id) for token_id in chosen.token_ids[row][is_token].tolist()],
            chosen.strengths[row][is_token].tolist(),
            (chosen.activations[row][is_token] > 0).tolist(),
        )
        number = row + 1
        text = (
            line(f"context {number}")
            + _before(texts, window_id)
            + write_body(pieces)
            + line(f"end of context {number}")
        )
        blocks.append(ContextBlock(window_id, break_control_tokens(text)))
    return tuple(blocks)


def _before(texts: FeatureTexts, window_id: int) -> str:
    tokens = [texts.token_text(token_id) for token_id in texts.prefix_of(window_id)]
    return line("text before") + show_text(tokens) + "\n" if tokens else ""
