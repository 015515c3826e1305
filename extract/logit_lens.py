"""The logit lens: what each layer's residual stream would predict if the model ended there.

The residual stream after a layer goes through the final norm, the unembedding and the soft cap
(nostalgebraist 2020). It is the arithmetic of the model's own head, so that after the last layer
it gives the model's own distribution, number for number. `golden.py` compares it with published
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32

from .logit_effects import unembedding
from .models import SubjectModel
from .sites import Site

# Of one product with the unembedding (128 MB): 131 tokens of Gemma's 256,000.
_LOGITS_AT_ONCE = 1 << 25


@dataclass(frozen=True, slots=True)
class LogitLens:
    """The most probable next tokens after each layer and token; layers count from 0.

    Attributes:
        token_id: by falling probability.
        probability: of each, among the whole vocabulary.
    """

    token_id: Int32[np.ndarray, "L T K"]
    probability: Float32[np.ndarray, "L T K"]


def head_logits(
    normed: Float[torch.Tensor, "T D"], head: Float[torch.Tensor, "V D"], cap: float | None
) -> Float[torch.Tensor, "T V"]:
    """What a model's head makes of the residual stream after the final norm.

    Args:
        normed: as the norm leaves it.
        head: the unembedding.
        cap: the soft cap of the logits, if the model has one.
    """
    logits = torch.nn.functional.linear(normed.to(head.dtype), head)
    if cap is None:
        return logits
    # In place, of half a gigabyte maybe; the order is that of transformers.
    return logits.div_(cap).tanh_().mul_(cap)


def lens_distributions(
    residual: Float[torch.Tensor, "T D"],
    norm: Any,
    head: Float[torch.Tensor, "V D"],
    cap: float | None,
) -> Float[torch.Tensor, "T V"]:
    """The probability of each token to come next, by the residual stream after some layer.

    Args:
        residual: that stream.
        norm: the model's final norm.
        head: its unembedding.
        cap: the soft cap of its logits, if it has one.
    """
    with torch.inference_mode():
        return head_logits(norm(residual), head, cap).float().softmax(-1)


def lens_sites(model: SubjectModel) -> list[Site]:
    """What the lens looks through: the residual stream after each layer."""
    return [Site(layer, "res") for layer in range(int(model.config.num_hidden_layers))]


def read_lens(
    model: SubjectModel, vectors: Mapping[Site, Float[torch.Tensor, "T D"]], k: int
) -> LogitLens | None:
    """The k most probable next tokens by each layer.

    Args:
        model: with all its layers.
        vectors: at least those of `lens_sites`.
        k: how many tokens.

    Returns:
        None where the unembedding is not loaded.
    """
    head = unembedding(model)
    if head is None:
        return None
    cap = getattr(model.config, "final_logit_softcapping", None)
    at_once = max(1, _LOGITS_AT_ONCE // len(head))
    found: list[list[torch.return_types.topk]] = []
    for site in lens_sites(model):
        blocks = torch.split(vectors[site], at_once)
        found.append(
            [
                lens_distributions(block, model.network.norm, head, cap).topk(k, dim=-1)
                for block in blocks
            ]
        )
    probability = torch.stack([torch.cat([each.values for each in layer]) for layer in found])
    token_id = torch.stack([torch.cat([each.indices for each in layer]) for layer in found])
    return LogitLens(token_id.int().cpu().numpy(), probability.cpu().numpy())
