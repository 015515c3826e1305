"""SAEs in the files of SAELens and of sparsify, put into the form of Gemma Scope's.

SAELens's are read by its own package, an extra (`pip install 'scopenote[sae-lens]'`), since their
meaning changed with its versions. Only what can be computed exactly is taken: ReLU, JumpReLU and
top-k. Many of these SAEs subtract `b_dec` from their input; here `b_dec @ W_enc` is taken from
`b_enc` instead, which is the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from ..store.errors import SaeError
from .sae_config import StatedConfig, not_computed, read_sae_config
from .sae_files import unreadable_sae
from .sites import Site, SiteKind

SAELENS_FILE = "sae_weights.safetensors"
SPARSIFY_FILE = "sae.safetensors"
OTHER_FILES = (SAELENS_FILE, SPARSIFY_FILE)
OTHER_CONFIG_FILE = "cfg.json"

# Names of TransformerLens, which SAELens writes down, for tensors that are sites.
_HOOK = re.compile(r"blocks\.(\d+)\.(hook_resid_post|hook_mlp_out|attn\.hook_z|hook_resid_pre)")
_KINDS: dict[str, SiteKind] = {
    "hook_resid_post": "res",
    "hook_mlp_out": "mlp",
    "attn.hook_z": "att",
}
_COMPUTED = ("standard", "jumprelu", "topk")
_CONFIG = "a JSON object beside the weights, as SAELens and sparsify write it"
_WEIGHTS = f"weights that fit the {OTHER_CONFIG_FILE} beside them"


@dataclass(frozen=True, slots=True)
class OtherSae:
    """Arrays by Gemma Scope's names, and the k of a top-k SAE."""

    arrays: dict[str, np.ndarray]
    k: int | None


def read_other_config(file: Path) -> StatedConfig:
    """What the cfg.json of SAELens or sparsify, and the folder it lies in, say of the site.

    Raises:
        SaeError: there is none, or it is not JSON.
    """
    config = read_sae_config(file, _CONFIG)
    metadata = config.get("metadata")
    named = {**config, **(metadata if isinstance(metadata, dict) else {})}
    hook = _HOOK.fullmatch(str(named.get("hook_name") or named.get("hook_point")))
    if hook is not None and hook[2] in _KINDS:
        return StatedConfig(Site(int(hook[1]), _KINDS[hook[2]]), None)
    # Before a layer lies what the one before it put out; before the first, the scaled embedding.
    if hook is not None and int(hook[1]) > 0:
        return StatedConfig(Site(int(hook[1]) - 1, "res"), None)
    # sparsify names a folder after the module whose output it reads.
    if module := re.fullmatch(r"layers\.(\d+)", file.parent.name):
        return StatedConfig(Site(int(module[1]), "res"), None)
    return StatedConfig(None, None)


def read_other_sae(path: Path) -> OtherSae:
    """The SAE in a folder of SAELens or sparsify.

    Args:
        path: its SAELENS_FILE or SPARSIFY_FILE.

    Raises:
        SaeError: it is damaged, of a kind that is not computed here, or needs a package that is
            not installed.
    """
    return _read_saelens(path) if path.name == SAELENS_FILE else _read_sparsify(path)


def _read_saelens(path: Path) -> OtherSae:
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise SaeError(
            "The SAE is in the format of SAELens, and its package is not installed.",
            where=str(path),
            found=str(error),
            expected="the package sae-lens",
            mend="pip install 'scopenote[sae-lens]'",
        ) from error
    try:
        sae = SAE.load_from_disk(path.parent, dtype="float32")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise unreadable_sae(path, error, _WEIGHTS) from error
    config, architecture = sae.cfg, sae.cfg.architecture()
    if architecture not in _COMPUTED:
        raise not_computed(path, f"architecture {architecture!r}", ", ".join(_COMPUTED))
    if config.normalize_activations != "none":
        found = f"normalize_activations {config.normalize_activations!r}"
        raise not_computed(path, found, "input that is taken as it is")
    if getattr(config, "rescale_acts_by_decoder_norm", False):
        sae.fold_W_dec_norm()
    threshold = sae.threshold if architecture == "jumprelu" else torch.zeros(config.d_sae)
    return OtherSae(
        in_our_form(
            sae.W_enc,
            sae.W_dec,
            sae.b_enc,
            sae.b_dec,
            # SAELens applies ReLU as well, so that below zero a threshold changes nothing.
            threshold.clamp(min=0),
            subtracts_b_dec=config.apply_b_dec_to_input,
        ),
        checked_k(path, config.k, config.d_sae) if architecture == "topk" else None,
    )


def _read_sparsify(path: Path) -> OtherSae:
    config = read_sae_config(path.parent / OTHER_CONFIG_FILE, _CONFIG)
    for name, plain in (("activation", "topk"), ("transcode", False), ("signed", False)):
        if config.get(name, plain) != plain:
            raise not_computed(path, f"{name} {config[name]!r}", f"{name} {plain!r}")
    if config.get("skip_connection"):
        raise not_computed(path, "a skip connection", "none")
    try:
        tensors = safetensors.torch.load_file(path)
        w_enc, bias = tensors["encoder.weight"].T, tensors["encoder.bias"]
        w_dec, b_dec = tensors["W_dec"], tensors["b_dec"]
        arrays = in_our_form(
            w_enc, w_dec, bias, b_dec, torch.zeros(w_enc.shape[1]), subtracts_b_dec=True
        )
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
        raise unreadable_sae(path, error, _WEIGHTS) from error
    return OtherSae(arrays, checked_k(path, config.get("k"), w_enc.shape[1]))


def in_our_form(
    w_enc: torch.Tensor,
    w_dec: torch.Tensor,
    b_enc: torch.Tensor,
    b_dec: torch.Tensor,
    threshold: torch.Tensor,
    *,
    subtracts_b_dec: bool,
) -> dict[str, np.ndarray]:
    """Arrays by Gemma Scope's names, as float32; what `b_dec` takes off is in `b_enc`."""
    bias = b_enc.double()
    if subtracts_b_dec:
        bias = bias - b_dec.double() @ w_enc.double()
    tensors = {
        "W_enc": w_enc,
        "W_dec": w_dec,
        "b_enc": bias,
        "b_dec": b_dec,
        "threshold": threshold,
    }
    return {
        name: np.asarray(tensor.detach().float().numpy(), order="C")
        for name, tensor in tensors.items()
    }


def checked_k(path: Path, k: Any, width: int) -> int:
    """The k of a top-k SAE.

    Raises:
        SaeError: it is no whole number from 1 to the number of features.
    """
    if isinstance(k, int) and 1 <= k <= width:
        return k
    raise not_computed(path, f"k {k!r}", f"a whole number from 1 to {width}")
