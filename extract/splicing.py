"""Changes at a site within a forward pass: an SAE's reconstruction, zeros, or anything else.

The pass goes on with what was put in. `golden.py` compares with published numbers what comes of
it, `next_token_loss.py` measures what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float

from .saes import Sae
from .sites import Site, hook_site

Change = Callable[[Float[torch.Tensor, "B S D"]], Float[torch.Tensor, "B S D"]]
"""Gives what is to stand in place of a site's vectors."""

# Activations of an SAE that are held at once (64 MB).
_ACTIVATIONS_AT_ONCE = 1 << 24


@contextmanager
def changed_site(model: Any, site: Site, change: Change) -> Iterator[None]:
    """Within the block every forward pass goes on with what `change` makes of the site.

    Args:
        model: the base model (`Gemma2Model` or `Gemma3TextModel`).
        site: where.
        change: of the site's vectors.
    """
    handle = hook_site(model, site, change)
    try:
        yield
    finally:
        handle.remove()


def splice(sae: Sae) -> Change:
    """Puts the SAE's reconstruction in place of what it reads, at every position."""

    def change(x: Float[torch.Tensor, "B S D"]) -> Float[torch.Tensor, "B S D"]:
        return reconstruct_in_blocks(sae, x.flatten(0, 1)).reshape(x.shape).to(x)

    return change


@contextmanager
def spliced(model: Any, sae: Sae, where: Bool[torch.Tensor, "B S"]) -> Iterator[None]:
    """Within the block the SAE's reconstruction stands in place of its target at these tokens.

    Args:
        model: the base model.
        sae: any, transcoders too; on the model's device.
        where: at which tokens.
    """
    read: list[torch.Tensor] = []

    def put_in(target: torch.Tensor) -> torch.Tensor:
        x = target if sae.site == sae.target else read.pop()
        changed = target.clone()
        changed[where] = reconstruct_in_blocks(sae, x[where]).to(target.dtype)
        return changed

    with changed_site(model, sae.target, put_in):
        if sae.site == sae.target:
            yield
        else:
            # What a transcoder reads comes before its target in the same layer.
            handle = hook_site(model, sae.site, read.append)
            try:
                yield
            finally:
                handle.remove()


@contextmanager
def zeroed(model: Any, site: Site, where: Bool[torch.Tensor, "B S"]) -> Iterator[None]:
    """Within the block the site's vectors are zero at these tokens."""

    def put_zeros(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(where[..., None], 0.0)

    with changed_site(model, site, put_zeros):
        yield


def reconstruct_in_blocks(
    sae: Sae, x: Float[torch.Tensor, "T D"], at_once: int = _ACTIVATIONS_AT_ONCE
) -> Float[torch.Tensor, "T D"]:
    """The SAE's reconstruction of the target, a block of tokens after the other.

    Args:
        sae: on the device of `x`.
        x: the vectors at the site that it reads.
        at_once: activations that are held at once, so that memory does not grow with its width.
    """
    blocks = torch.split(x, max(1, at_once // sae.width))
    return torch.cat([sae.reconstruct(block) for block in blocks])
