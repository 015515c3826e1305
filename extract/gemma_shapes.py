"""The shapes of the Gemma 2 models, so that arithmetic about them needs no download."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GemmaShape:
    """What decides the arithmetic of a Gemma, under the names of its `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = 256_000
    model_type: str = "gemma2"


# google/gemma-2-2b, -9b and -27b, config.json; Gemma Team 2024 (arXiv 2408.00118), table 1.
_PUBLISHED = {
    "gemma-2-2b": GemmaShape(2304, 9216, 26, 8, 4, 256),
    "gemma-2-9b": GemmaShape(3584, 14336, 42, 16, 8, 256),
    "gemma-2-27b": GemmaShape(4608, 36864, 46, 32, 16, 128),
}


def published_shape(model: str) -> GemmaShape | None:
    """The shape of a model by its name in feature ids; None for one that is not known here."""
    return _PUBLISHED.get(model.removesuffix("-it"))
