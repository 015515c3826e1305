"""Where in Gemma 2 a sparse autoencoder reads, and the hooks that read there.

Which tensor is which site follows Gemma Scope (Lieberum et al. 2024, section 3.1); the wrong
one still encodes without complaint, so every site is tested against a plain re-implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import nn

SiteKind = Literal["res", "mlp", "att"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)

SITE_TENSORS: dict[SiteKind, str] = {
    "res": "output of model.layers[N]",
    "mlp": "output of model.layers[N].post_feedforward_layernorm",
    "att": "input of model.layers[N].self_attn.o_proj",
}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in the model: the residual stream after a layer, or one of its sublayers."""

    layer: int
    kind: SiteKind

    def __str__(self) -> str:
        return f"{self.kind} of layer {self.layer}"


def site_width(site: Site, config: Any) -> int:
    """Length of the site's vectors under a Gemma 2 configuration."""
    if site.kind == "att":
        return int(config.num_attention_heads * config.head_dim)
    return int(config.hidden_size)


@contextmanager
def reading(
    model: nn.Module, sites: list[Site]
) -> Iterator[dict[Site, Float[torch.Tensor, "B S D"]]]:
    """Within the block, each forward pass of the base model leaves the sites' tensors here."""
    seen: dict[Site, torch.Tensor] = {}
    with ExitStack() as hooks:
        for site in sites:
            hooks.callback(_hook(model, site, seen).remove)
        yield seen


def _hook(
    model: nn.Module, site: Site, seen: dict[Site, torch.Tensor]
) -> torch.utils.hooks.RemovableHandle:
    layer: nn.Module = cast(Any, model).layers[site.layer]

    def keep_output(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        seen[site] = output

    def keep_input(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[site] = inputs[0]

    match site.kind:
        case "res":
            return layer.register_forward_hook(keep_output)
        case "mlp":
            norm = layer.get_submodule("post_feedforward_layernorm")
            return norm.register_forward_hook(keep_output)
        case "att":
            return layer.get_submodule("self_attn.o_proj").register_forward_pre_hook(keep_input)
