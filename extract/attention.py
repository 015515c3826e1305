"""Causal attention in blocks of queries, for CPUs.

Transformers' `eager` attention holds the whole square of scores, half of which the causal mask
throws away, and passes over it some ten times in main memory; its `sdpa` cannot apply Gemma 2's
soft cap. This one works through blocks of queries against the keys they may see, small enough
to stay in cache. It gives what `eager` gives, to rounding (tested).

It assumes what the collector feeds: rows of whole sequences, one after another, padded on the
right or not at all; no cache.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import AttentionInterface, AttentionMaskInterface

BLOCKED_ATTENTION = "scopenote_blocked_causal"

_BLOCK_QUERIES = 128

# Scores held at once (4 MB). Measured on two cores of a 2.5 GHz Xeon with 961-token sequences.
_BLOCK_SCORES = 1 << 20


def register_blocked_attention() -> None:
    """Makes the implementation known to transformers under `BLOCKED_ATTENTION`."""
    AttentionInterface.register(BLOCKED_ATTENTION, blocked_causal_attention)
    AttentionMaskInterface.register(BLOCKED_ATTENTION, _no_mask)


def blocked_causal_attention(
    module: Any,
    query: Float[torch.Tensor, "B H S D"],
    key: Float[torch.Tensor, "B K S D"],
    value: Float[torch.Tensor, "B K S D"],
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    position_ids: Int[torch.Tensor, "P S"] | None = None,
    **_: Any,
) -> tuple[Float[torch.Tensor, "B S H D"], None]:
    """Attention of each token to itself and those before it, in the form transformers calls.

    A token sees no others than those of its own sequence, which `position_ids` count from 0.
    """
    n_sequences, n_heads, n_tokens, width = query.shape
    groups = n_heads // key.shape[1]
    key = key.repeat_interleave(groups, dim=1).transpose(-1, -2)
    value = value.repeat_interleave(groups, dim=1)
    query = query * scaling
    attended = torch.empty((n_sequences, n_tokens, n_heads, width), dtype=value.dtype)
    places = torch.arange(n_tokens)
    starts = torch.zeros_like(places) if position_ids is None else places - position_ids
    starts = starts.expand(n_sequences, n_tokens)
    at_once = max(1, _BLOCK_SCORES // (n_heads * _BLOCK_QUERIES * n_tokens))
    for first in range(0, n_sequences, at_once):
        rows = slice(first, first + at_once)
        for begin in range(0, n_tokens, _BLOCK_QUERIES):
            end = min(begin + _BLOCK_QUERIES, n_tokens)
            first_seen = starts[rows, begin:end]
            if sliding_window:
                first_seen = first_seen.clamp(min=places[begin:end] + 1 - sliding_window)
            oldest = int(first_seen.min())
            scores = query[rows, :, begin:end] @ key[rows, :, :, oldest:end]
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            keys = places[oldest:end]
            unseen = (keys > places[begin:end, None]) | (keys < first_seen[..., None])
            scores.masked_fill_(unseen[:, None], -torch.inf)
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
            block = weights @ value[rows, :, oldest:end]
            attended[rows, begin:end] = block.transpose(1, 2)
    return attended, None


def _no_mask(*_: Any, **__: Any) -> None:
    """What a query may see follows from its place: no mask is built."""
