"""Gemma 2's attention, a few tokens at a time, for long texts that are only read.

Gemma 2 bends its attention scores by a soft cap, which the fast kernels do not know. transformers
falls back on the plain way ("eager"), which makes seven tables of all scores of a layer, one after
the other. Here the same is computed for so many tokens at once that one table stays in a CPU's
cache, or small beside a GPU's memory, it is changed in place, and the keys behind the last of the
tokens are left out instead of masked. On one CPU core the local simulator then takes about a
seventh less time for a window (tests/benchmarks/simulator_speed.py). Left out: training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

_NAME = "scopenote_capped"
# Scores held at once: 1 MB on a CPU, 512 MB elsewhere.
_SCORES_ON_CPU, _SCORES = 1 << 18, 1 << 27


def attend_in_chunks(network: Any) -> None:
    """Has a Gemma 2 attend so; any other network stays as it is."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    if network.config.model_type != "gemma2" or network.config._attn_implementation != "eager":
        return
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, eager_mask)
    network.set_attn_implementation(_NAME)


def attend(
    module: Any,
    query: Float[torch.Tensor, "B H S D"],
    key: Float[torch.Tensor, "B K T D"],
    value: Float[torch.Tensor, "B K T D"],
    attention_mask: Float[torch.Tensor, "#B 1 S T"] | None,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[torch.Tensor, "B S H D"], None]:
    """What transformers' `eager_attention_forward` of Gemma 2 gives, without its weights."""
    import torch

    n_rows, n_heads, n_queries, size = query.shape
    n_kept, n_seen = key.shape[1], key.shape[2]
    # Heads that share keys stand side by side.
    grouped = query.view(n_rows, n_kept, n_heads // n_kept, n_queries, size) * (
        scaling if softcap is None else scaling / softcap
    )
    most = _SCORES_ON_CPU if query.device.type == "cpu" else _SCORES
    step = max(1, most // (n_rows * n_heads * n_seen))
    parts = []
    for first in range(0, n_queries, step):
        chunk = grouped[:, :, :, first : first + step]
        # The last of the queries is the last of the keys, and none sees what is behind it.
        end = n_seen - n_queries + first + chunk.shape[3]
        scores = chunk.flatten(2, 3) @ key[:, :, :end].transpose(2, 3)
        if softcap is not None:
            scores.tanh_().mul_(softcap)
        by_head = scores.view(*chunk.shape[:4], end)
        if attention_mask is not None:
            by_head.add_(attention_mask[:, :, None, first : first + step, :end])
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        parts.append((weights @ value[:, :, :end]).view(chunk.shape))
    attended = torch.cat(parts, dim=3).view(n_rows, n_heads, n_queries, size)
    return attended.transpose(1, 2).contiguous(), None
