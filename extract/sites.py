"""Where in Gemma 2 and 3 a sparse autoencoder reads, and the hooks that read there.

Which tensor is which site follows Gemma Scope (Lieberum et al. 2024, section 3.1); the wrong
one still encodes without complaint, so every site is tested against a plain re-implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock, local
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.utils.hooks import RemovableHandle

SiteKind = Literal["res", "mlp", "att", "transcoder", "mlp_in", "embedding"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)

_TENSORS: dict[SiteKind, str] = {
    "res": "output of model.layers[N]",
    "mlp": "output of model.layers[N].post_feedforward_layernorm",
    "att": "input of model.layers[N].self_attn.o_proj",
    # Gemma Scope's transcoders, whose encoders have the norm's gain folded in.
    "transcoder": "input of model.layers[N].pre_feedforward_layernorm, divided by its root mean "
    "square, without the norm's gain",
    # Gemma Scope 2's transcoders.
    "mlp_in": "output of model.layers[N].pre_feedforward_layernorm",
    "embedding": "rows of model.embed_tokens.weight, before they are scaled",
}
# What is read before the MLP is to predict what the MLP adds; all else is to be rebuilt itself.
_TARGETS: dict[SiteKind, SiteKind] = {"transcoder": "mlp", "mlp_in": "mlp"}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in the model: the residual stream after a layer, or one of its sublayers.

    The embedding, which comes before all layers, counts as layer 0's.
    """

    layer: int
    kind: SiteKind

    def __str__(self) -> str:
        return self.kind if self.kind == "embedding" else f"{self.kind} of layer {self.layer}"

    @property
    def tensor(self) -> str:
        """Which tensor of the Hugging Face model this is, in words."""
        return _TENSORS[self.kind].replace("[N]", f"[{self.layer}]")

    @property
    def target(self) -> Site:
        """The site that an SAE which reads here reconstructs."""
        return Site(self.layer, _TARGETS.get(self.kind, self.kind))


def site_width(site: Site, config: Any) -> int:
    """Length of the site's vectors under a configuration of Gemma."""
    if site.kind == "att":
        return int(config.num_attention_heads * config.head_dim)
    return int(config.hidden_size)


def hook_site(
    model: nn.Module, site: Site, act: Callable[[torch.Tensor], torch.Tensor | None]
) -> RemovableHandle:
    """Has `act` called with the site's vectors in every forward pass, till the handle is removed.

    The pass goes on with what `act` gives in their place, or where it gives None with the
    vectors as they are.

    Args:
        model: the base model (`Gemma2Model` or `Gemma3TextModel`).
        site: where.
        act: takes and gives vectors as the site has them; those of the embedding before they
            are scaled.

    Raises:
        ValueError: in the pass, if `act` changes what a transcoder of Gemma Scope reads: no
            tensor of the model is that.
    """

    def on_output(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        return act(output)

    def on_input(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        return act(inputs[0])

    def on_normed_input(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float()
        mean_square = x.square().mean(-1, keepdim=True)
        if act(x * torch.rsqrt(mean_square + cast(Any, norm).eps)) is not None:
            raise ValueError(f"nothing is changed at {site}: the model does not go on from there")

    def on_rows(
        embedding: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor
    ) -> torch.Tensor | None:
        weight = cast(Any, embedding).weight
        rows = act(nn.functional.embedding(inputs[0], weight))
        # As the module itself scales them.
        return None if rows is None else rows * cast(Any, embedding).embed_scale.to(weight.dtype)

    if site.kind == "embedding":
        return cast(nn.Module, cast(Any, model).embed_tokens).register_forward_hook(on_rows)
    layer: nn.Module = cast(Any, model).layers[site.layer]
    match site.kind:
        case "res":
            return layer.register_forward_hook(on_output)
        case "mlp":
            norm = layer.get_submodule("post_feedforward_layernorm")
            return norm.register_forward_hook(on_output)
        case "att":
            o_proj = layer.get_submodule("self_attn.o_proj")
            return o_proj.register_forward_pre_hook(on_input)
        case "transcoder":
            norm = layer.get_submodule("pre_feedforward_layernorm")
            return norm.register_forward_pre_hook(on_normed_input)
        case "mlp_in":
            norm = layer.get_submodule("pre_feedforward_layernorm")
            return norm.register_forward_hook(on_output)


class _AllSeenError(Exception):
    """Ends a pass once every site that was asked for has been read."""


class SiteReader:
    """Reads sites in forward passes of a base model, in any number of threads at once.

    Hooks stay once they are there: one that came or went while another thread's pass is under
    way could be met half done.

    Args:
        model: the base model (`Gemma2Model` or `Gemma3TextModel`).
        sites: what will be read; others are added when they are first asked for.
    """

    def __init__(self, model: nn.Module, sites: Iterable[Site] = ()) -> None:
        self._model = model
        self._seen = local()
        self._hooked: set[Site] = set()
        self._lock = Lock()
        self.cancelled = Event()
        for number, layer in enumerate(cast(Any, model).layers):
            layer.register_forward_pre_hook(partial(self._before_layer, number))
        self._hook(sites)

    def read(
        self,
        input_ids: Int[torch.Tensor, "B S"],
        sites: Iterable[Site],
        position_ids: Int[torch.Tensor, "B S"] | None = None,
    ) -> dict[Site, Float[torch.Tensor, "B S D"]]:
        """The sites' tensors, from one pass; from none, where only the embedding is read.

        Args:
            input_ids: on the model's device.
            sites: what is read.
            position_ids: each token's place in its sequence, where rows hold several.

        Raises:
            CancelledError: `cancelled` was set meanwhile.
        """
        wanted = list(sites)
        self._hook(wanted)
        self._seen.deepest = max((site.layer for site in wanted), default=0)
        self._seen.tensors = {
            site: nn.functional.embedding(input_ids, cast(Any, self._model).embed_tokens.weight)
            for site in wanted
            if site.kind == "embedding"
        }
        try:
            if len(self._seen.tensors) < len(set(wanted)):
                with suppress(_AllSeenError):
                    self._model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
            return {site: self._seen.tensors[site] for site in wanted}
        finally:
            del self._seen.tensors, self._seen.deepest

    def _hook(self, sites: Iterable[Site]) -> None:
        with self._lock:
            for site in set(sites) - self._hooked:
                # The embedding's rows are looked up without a pass.
                if site.kind != "embedding":
                    hook_site(self._model, site, partial(self._keep, site))
                self._hooked.add(site)

    def _keep(self, site: Site, tensor: torch.Tensor) -> None:
        # In passes that were not begun by `read` nobody asks.
        getattr(self._seen, "tensors", {})[site] = tensor

    def _before_layer(self, number: int, *_: Any) -> None:
        if self.cancelled.is_set():
            raise CancelledError
        # Passes that were not begun by `read` go to the end.
        if number > getattr(self._seen, "deepest", number):
            raise _AllSeenError
