"""What the folders of Gemma Scope and Gemma Scope 2 say of the SAEs in them.

Ids follow Neuronpedia: of several SAEs of one layer, site and width one bears the plain id, and
the others append what tells them apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..store.errors import SaeError
from .gemma_scope_index import EMBEDDING, gemma_scope_id, mark_release
from .sae_config import StatedConfig, not_computed, read_sae_config, unreadable_config
from .sites import SITE_KINDS, Site, SiteKind

NPZ_FILE = "params.npz"
SAFETENSORS_FILE = "params.safetensors"

_LAYOUT = re.compile(
    r"(?P<above>[^/]+)/(layer_(?P<layer>\d+)|embedding)"
    r"/width_(?P<width>\w+)/average_l0_(?P<l0>\d+)$"
)
_REPOSITORY = re.compile(r"gemma-scope-\w+-(pt|it)-(res|mlp|att|transcoders)")

_LAYOUT_2 = re.compile(
    r"(gemma-scope-2-[^/]+-(?P<release>pt|it)/)?"
    r"(?P<family>(?P<what>resid_post|mlp_out|attn_out|transcoder)(?P<all>_all)?)"
    r"/layer_(?P<layer>\d+)_width_(?P<width>[^_/]+)_l0_(?P<l0>[^_/]+(?P<affine>_affine)?)$"
)
_KINDS_2: dict[str, SiteKind] = {
    "resid_post": "res",
    "mlp_out": "mlp",
    "attn_out": "att",
    "transcoder": "mlp_in",
}
# Those that Neuronpedia shows under a plain id (from the list of SAELens 6.54).
_PLAIN_2 = {("resid_post", "medium"), ("transcoder_all", "small_affine")}
_HOOKS: dict[SiteKind, str] = {
    "res": "model.layers.{}.output",
    "mlp": "model.layers.{}.post_feedforward_layernorm.output",
    "att": "model.layers.{}.self_attn.o_proj.input",
    "mlp_in": "model.layers.{}.pre_feedforward_layernorm.output",
}
_CONFIG = "a JSON object, as Gemma Scope 2 writes it"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a folder's path says.

    Attributes:
        source_id: the SAE's part of feature ids, such as `20-gemmascope-res-16k`.
        kind: what the SAE reads, if that is told.
        layer: counted from 0; 0 for the embedding.
        stated_l0: active features per token that the name promises, if it does.
        file: how the file in the folder is called.
    """

    source_id: str
    kind: SiteKind | None
    layer: int
    stated_l0: float | None
    file: str


def read_layout(
    folder: str, model: str, kind: SiteKind | None = None, layer: int | None = None
) -> Layout | None:
    """What a folder's path says, if it ends as Gemma Scope's or Gemma Scope 2's do.

    Args:
        folder: with `/` between names.
        model: that the SAE is used on, as in feature ids.
        kind: what is read, where the caller knows better.
        layer: likewise.
    """
    if found := _LAYOUT.search(folder):
        return _read_layout(found, model, kind, layer)
    if found := _LAYOUT_2.search(folder):
        return _read_layout_2(found, model, kind, layer)
    return None


def _read_layout(
    found: re.Match[str], model: str, kind: SiteKind | None, layer: int | None
) -> Layout:
    above, width, l0 = found["above"], found["width"], int(found["l0"])
    published = found["layer"] or EMBEDDING
    if kind is None:
        kind = "embedding" if published == EMBEDDING else _kind_in(above)
    layer = int(found["layer"] or 0) if layer is None else layer
    if _REPOSITORY.fullmatch(above) and kind is not None:
        source_id = gemma_scope_id(model, above, published, kind, width, l0, str(layer))
    else:
        source_id = f"{layer}-{kind}-{width}"
    return Layout(source_id, kind, layer, float(l0), NPZ_FILE)


def _kind_in(above: str) -> SiteKind | None:
    """The site in the name of the folder or repository above the layers."""
    ending = above.rpartition("-")[2]
    return next((kind for kind in SITE_KINDS if ending in (kind, f"{kind}s")), None)


def _read_layout_2(
    found: re.Match[str], model: str, kind: SiteKind | None, layer: int | None
) -> Layout:
    kind = kind or _KINDS_2[found["what"]]
    layer = int(found["layer"]) if layer is None else layer
    shown = "transcoder" if kind == "mlp_in" else kind
    source_id = f"{layer}-gemmascope-2-{shown}-{found['width']}"
    source_id += mark_release(found["release"], model)
    if (found["family"], found["l0"]) not in _PLAIN_2:
        # The two families of a site were trained apart, and share names of layers and widths.
        family = "-all" if found["all"] else ""
        source_id += f"{family}-l0-{found['l0'].replace('_', '-')}"
    return Layout(source_id, kind, layer, None, SAFETENSORS_FILE)


def read_stated_config(file: Path) -> StatedConfig:
    """What the config.json of an SAE of Gemma Scope 2 says.

    Raises:
        SaeError: it is not there, cannot be read, or tells of an SAE that Scopenote does not
            know: of another architecture, or between tensors that are no sites.
    """
    config = read_sae_config(file, _CONFIG)
    try:
        l0 = float(config["l0"]) if config.get("l0") else None
    except (ValueError, TypeError) as error:
        raise unreadable_config(file, error, _CONFIG) from error
    architecture = config.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise not_computed(file, f"architecture {architecture!r}", "jump_relu")
    hook_in, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if hook_in is None:
        return StatedConfig(None, l0)
    site = _site_of_hook(hook_in)
    if site is None or hook_out not in (None, _HOOKS[site.target.kind].format(site.layer)):
        raise SaeError(
            "The SAE reads or reconstructs a tensor that is no site of Scopenote.",
            where=str(file),
            found=f"from {hook_in} to {hook_out}",
            expected="; ".join(
                f"from {hook.format('N')}"
                + (f" to {_HOOKS['mlp'].format('N')}" if kind == "mlp_in" else "")
                for kind, hook in _HOOKS.items()
            ),
        )
    return StatedConfig(site, l0)


def _site_of_hook(hook: object) -> Site | None:
    found = re.search(r"\.layers\.(\d+)\.", str(hook))
    layer = int(found[1]) if found else 0
    kinds = [kind for kind, name in _HOOKS.items() if name.format(layer) == hook]
    return Site(layer, kinds[0]) if kinds else None
