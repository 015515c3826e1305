"""Where the features of an SAE point in the residual stream, and which point the same way.

SAEs of the residual stream, of the MLP's output, transcoders and neurons write into the residual
stream, of whatever layer: their decoder rows are directions of one space. Those of the embedding
do after a scaling. An attention SAE's live in the concatenated heads; they reach the stream through
`o_proj` and the gain of `post_attention_layernorm`, whose division by a root mean square changes
no direction. Two attention SAEs of one layer are compared in the space of the heads itself.

A model and its instruction-tuned version share that space: tuning moves directions little. Of two
models trained apart the same shape says nothing, and their cosines are about 0.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float

from .models import SubjectModel
from .saes import Sae
from .strongest import blocks_of

# Of one product, so that 75 MB of rows of Gemma 2 2B are held at once.
_FEATURES_AT_ONCE = 8192

_SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "vocab_size",
)


def residual_directions(
    sae: Sae, features: range, model: SubjectModel | None
) -> Float[torch.Tensor, "F D"]:
    """What a unit of each feature adds to the residual stream; of attention up to a factor.

    Args:
        sae: any.
        features: consecutive ones.
        model: with the layer of an attention SAE; others need none.
    """
    rows: torch.Tensor = sae.decoder[features.start : features.stop].float()
    match sae.target.kind:
        case "res" | "mlp":
            return rows
        case "embedding":
            return rows * float(sae.decoder.shape[1] ** 0.5)
        case "att":
            if model is None:
                raise ValueError("what attention adds to the stream, only its model says")
            layer = model.network.layers[sae.target.layer]
            through: torch.Tensor = rows @ layer.self_attn.o_proj.weight.detach().float().T
            gain: torch.Tensor = 1 + layer.post_attention_layernorm.weight.detach().float()
            return through * gain
        case kind:
            raise ValueError(f"what an SAE of {kind} adds to the residual stream is not known")


def needs_model(own: Sae, other: Sae) -> bool:
    """Whether directions of these two can only be compared through the model's weights."""
    return own.target != other.target and "att" in (own.target.kind, other.target.kind)


@torch.inference_mode()
def cosines(
    own: Sae,
    feature: int,
    other: Sae,
    own_model: SubjectModel | None = None,
    other_model: SubjectModel | None = None,
) -> Float[torch.Tensor, " F"]:
    """The cosine of a feature's direction with that of each feature of another SAE, on the CPU.

    Exact, in float32, a block of features after another. NaN where one has no direction.

    Args:
        own: the SAE that the feature is of.
        feature: its number.
        other: the other SAE, of the same model, or of one with the same residual space.
        own_model: where `needs_model` says so.
        other_model: likewise; that of the other SAE.
    """
    only, is_same_site = range(feature, feature + 1), own.target == other.target

    def directions(sae: Sae, features: range, model: SubjectModel | None) -> torch.Tensor:
        if is_same_site:
            return sae.decoder[features.start : features.stop].float()
        return residual_directions(sae, features, model)

    direction = directions(own, only, own_model)[0].cpu().double()
    found: list[torch.Tensor] = []
    for block in blocks_of(range(other.width), _FEATURES_AT_ONCE):
        rows = directions(other, block, other_model)
        along = rows @ direction.to(rows)
        found.append(along.cpu() / torch.linalg.vector_norm(rows, dim=1).cpu())
    along_all: torch.Tensor = torch.cat(found) / direction.norm().float()
    return along_all


def differing_shape(own: Any, other: Any) -> str | None:
    """In what two models' configurations differ so that they share no space; None: in nothing."""
    for name in _SHAPE:
        values = getattr(own, name, None), getattr(other, name, None)
        if values[0] != values[1]:
            return f"{name} is {values[0]} in the one and {values[1]} in the other"
    return None
