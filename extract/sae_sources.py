"""Which SAE a path means: on disk or on the hub, what it reads, and what it is called."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..store.errors import SaeError
from ..store.unit_names import is_neuron_basis, split_basis_name
from .dictionary_learning import (
    DICTIONARY_CONFIG_FILE,
    DICTIONARY_FILE,
    read_dictionary_config,
)
from .gemma_scope import (
    NPZ_FILE,
    SAFETENSORS_FILE,
    Layout,
    read_layout,
    read_stated_config,
)
from .gemma_scope_index import check_published, resolve_short_name
from .hub_files import NoSuchHubFile, download
from .other_saes import (
    OTHER_CONFIG_FILE,
    OTHER_FILES,
    SAELENS_FILE,
    SPARSIFY_FILE,
    read_other_config,
)
from .sae_config import StatedConfig
from .sites import SITE_KINDS, Site, SiteKind

SAE_FILES = (NPZ_FILE, SAFETENSORS_FILE, *OTHER_FILES, DICTIONARY_FILE)
"""What a file of weights may be called, in the order in which a folder is looked through."""

# What beside a file says what its SAE reads.
_CONFIG_FILES = {
    SAFETENSORS_FILE: "config.json",
    SAELENS_FILE: OTHER_CONFIG_FILE,
    SPARSIFY_FILE: OTHER_CONFIG_FILE,
    DICTIONARY_FILE: DICTIONARY_CONFIG_FILE,
}
# The hub's cache keeps a repository `org/name` as `models--org--name/snapshots/{commit}`.
_HUB_CACHE = re.compile(r"/models--[^/]+?--(?P<name>[^/]+)/snapshots/[^/]+/")
_HUB_PATH = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)/(?P<inside>\w[\w./-]*)$")


@dataclass(frozen=True, slots=True)
class SaeSource:
    """Where an SAE's file is and what it is for.

    Attributes:
        sae_id: `{model}/{source}`, as in feature ids.
        path: the params.npz or params.safetensors, or the weights of SAELens, sparsify or
            dictionary_learning; of a neuron basis the part's table of thresholds, None until it
            is worked out.
        site: the tensor it reads.
        stated_l0: active features per token that its folder or config.json promises, if either
            does.
        source: as the user named it.
    """

    sae_id: str
    path: Path | None
    site: Site
    stated_l0: float | None
    source: str

    @property
    def is_neuron_basis(self) -> bool:
        """Whether this is no SAE but a layer's neurons."""
        return is_neuron_basis(self.sae_id)


def locate_sae(
    path: str, model: str, kind: SiteKind | None = None, layer: int | None = None
) -> SaeSource:
    """What a path says of itself, in Gemma Scope's layouts or told by the caller.

    A name such as `20-mlp-neurons` means that layer's neurons, whatever files there are. What
    does not exist here and is a short name (`gemma-2-2b/20-gemmascope-res-16k`) or could be
    a path on the hub (`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`) is
    downloaded.

    Args:
        path: a file, the folder that holds it, a short name, or a neuron basis.
        model: the model's name in feature ids.
        kind: the site, where a folder called `res`, `mlp` or `att` (or a repository's name
            ending so) above the layer does not tell.
        layer: counted from 0, where a folder `layer_N` does not tell.

    Raises:
        SaeError: nothing is there, or site or layer cannot be told; or the neurons are another
            model's or read at another site.
    """
    if neurons := neuron_source(path, model, kind, layer):
        return neurons
    if not Path(path).exists() and (on_hub := _HUB_PATH.match(resolve_short_name(path) or path)):
        return _locate_on_hub(path, on_hub["repo"], on_hub["inside"], model, kind, layer)
    file = _local_file(path)
    return _describe(path, file, _local_folder(file), _stated_locally(file), model, kind, layer)


def neuron_source(
    path: str, model: str, kind: SiteKind | None, layer: int | None
) -> SaeSource | None:
    """The neuron basis that a path means; None where it means something else.

    Args:
        path: as the user named it.
        model: the model's name in feature ids.
        kind: the site that the user named beside it, if any.
        layer: likewise.

    Raises:
        SaeError: model, site or layer are not those of the name.
    """
    named = split_basis_name(path)
    if named is None:
        return None
    of_model, of_layer = named
    told = f"model {of_model or model}, site {kind or 'mlp'}, layer "
    told += str(of_layer if layer is None else layer)
    meant = f"model {model}, site mlp, layer {of_layer}"
    if told != meant:
        raise SaeError(
            "These are not the neurons of this run's model at their own place.",
            where="[saes] paths",
            found=f"{path}: {told}",
            expected=meant,
            mend=f'write "{of_layer}-mlp-neurons"',
        )
    sae_id = f"{model}/{of_layer}-mlp-neurons"
    return SaeSource(sae_id, None, Site(of_layer, "mlp"), None, path)


def _locate_on_hub(
    path: str, repo: str, inside: str, model: str, kind: SiteKind | None, layer: int | None
) -> SaeSource:
    folder, named = inside.rstrip("/"), None
    if folder.endswith((".npz", ".safetensors", ".pt")):
        folder, _, named = folder.rpartition("/")
    check_published(repo, folder)
    in_full = f"{repo}/{folder}"
    layout = read_layout(in_full, model, kind, layer)
    names = [named] if named else [layout.file] if layout else list(SAE_FILES)
    stated = _stated_on_hub(repo, folder, names)
    # Before the weights are downloaded.
    _place(path, in_full, stated, model, kind, layer)
    file = _download_first(repo, folder, names)
    return _describe(path, file, in_full, stated, model, kind, layer)


def _stated_on_hub(repo: str, folder: str, names: list[str]) -> StatedConfig:
    """What the first configuration says that the hub has for a file of these names."""
    configs = dict.fromkeys(_CONFIG_FILES[name] for name in names if name in _CONFIG_FILES)
    for config in configs:
        try:
            return _read_stated(download(repo, f"{folder}/{config}"))
        except NoSuchHubFile:
            continue
    return StatedConfig(None, None)


def _read_stated(config: Path) -> StatedConfig:
    if config.name == OTHER_CONFIG_FILE:
        return read_other_config(config)
    if not config.is_file():
        return StatedConfig(None, None)
    # Two families call theirs alike, and on the hub it is read before the weights are there.
    return read_dictionary_config(config) or read_stated_config(config)


def _download_first(repo: str, folder: str, names: list[str]) -> Path:
    *others, last = names
    for name in others:
        try:
            return download(repo, f"{folder}/{name}")
        except NoSuchHubFile:
            continue
    return download(repo, f"{folder}/{last}")


def _local_file(path: str) -> Path:
    files = [Path(path) / name for name in SAE_FILES] if Path(path).is_dir() else [Path(path)]
    for file in files:
        if file.is_file():
            return file
    raise SaeError(
        "There is no SAE at this path.",
        where="[saes] paths",
        found=path,
        expected=f"a {' or '.join(SAE_FILES)}, the folder that holds one, a short name such as "
        "gemma-2-2b/20-gemmascope-res-16k, a path on the hub such as "
        "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71, or the neurons of a layer "
        "such as 20-mlp-neurons",
        mend=mend_neuron_name(path),
    )


def mend_neuron_name(path: str) -> str | None:
    """What to write where a path is nearly the name of a neuron basis; None where it is not."""
    near = re.fullmatch(r"(.+/)?\D*(\d+)\D*", path)
    if near is None or "neuron" not in path.lower() or path.startswith(("/", ".", "~")):
        return None
    return f'perhaps "{int(near[2])}-mlp-neurons" was meant'


def _local_folder(file: Path) -> str:
    # Links are not followed: the hub's cache links to files that are named by their content.
    folder = Path(os.path.abspath(file)).parent.as_posix()
    return _HUB_CACHE.sub(r"/\g<name>/", folder)


def _stated_locally(file: Path) -> StatedConfig:
    config = _CONFIG_FILES.get(file.name)
    return _read_stated(file.parent / config) if config else StatedConfig(None, None)


def _describe(
    path: str,
    file: Path,
    folder: str,
    stated: StatedConfig,
    model: str,
    kind: SiteKind | None,
    layer: int | None,
) -> SaeSource:
    layout, site = _place(path, folder, stated, model, kind, layer)
    if layout is None and is_neuron_basis(folder):
        raise SaeError(
            "The folder's name, which becomes the SAE's id, is that of a neuron basis.",
            where="[saes] paths",
            found=path,
            expected="another name",
            mend="rename the folder",
        )
    stated_l0 = layout.stated_l0 if layout and layout.stated_l0 is not None else stated.l0
    return SaeSource(
        sae_id=f"{model}/{layout.source_id if layout else folder.rpartition('/')[2]}",
        path=file,
        site=site,
        stated_l0=stated_l0,
        source=path,
    )


def _place(
    path: str,
    folder: str,
    stated: StatedConfig,
    model: str,
    kind: SiteKind | None,
    layer: int | None,
) -> tuple[Layout | None, Site]:
    """The layout and the site: as told, else by the configuration, else by the folder."""
    if stated.site is not None:
        kind = kind or stated.site.kind
        layer = stated.site.layer if layer is None else layer
    layout = read_layout(folder, model, kind, layer)
    return layout, _tell_site(path, layout, kind, layer)


def _tell_site(path: str, layout: Layout | None, kind: SiteKind | None, layer: int | None) -> Site:
    if layout is not None:
        kind, layer = layout.kind, layout.layer
    if kind == "embedding":
        layer = layer or 0
    if kind is None or layer is None:
        raise SaeError(
            "The path does not say which tensor the SAE reads.",
            where=path,
            found=f"site {kind or 'unknown'}, layer {'unknown' if layer is None else layer}",
            expected=f"…-res/layer_20/width_16k/average_l0_71/{NPZ_FILE} or the like",
            mend='name both: {path = "…", site = "res", layer = 20}, site being one of '
            + ", ".join(SITE_KINDS),
        )
    if kind == "embedding" and layer != 0:
        raise SaeError(
            "The embedding comes before all layers.",
            where=path,
            found=f"site embedding, layer {layer}",
            expected='site = "embedding" without a layer',
        )
    return Site(layer, kind)
