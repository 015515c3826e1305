"""Which SAE a path means: on disk or on the hub, what it reads, and what it is called.

Ids follow Neuronpedia. For the SAEs of Gemma Scope (Lieberum et al. 2024), which published
several for each layer and width, Neuronpedia's plain id means the *canonical* one, with the L0
nearest 100; the others append their L0. The canonical choices, which the hub does not tell,
stand in `gemma_scope_canonical.json` as {repository: {width: {layer: L0}}}, taken from the
pre-trained SAE list of SAELens 6.54 (MIT licence).
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..store.errors import SaeError
from .sites import SITE_KINDS, Site, SiteKind

_LAYOUT = re.compile(
    r"(?P<above>[^/]+)/layer_(?P<layer>\d+)/width_(?P<width>\w+)/average_l0_(?P<l0>\d+)$"
)
_GEMMA_SCOPE = re.compile(r"gemma-scope-\w+-(pt|it)-(res|mlp|att)$")
# The hub's cache keeps a repository `org/name` as `models--org--name/snapshots/{commit}`.
_HUB_CACHE = re.compile(r"/models--[^/]+?--(?P<name>[^/]+)/snapshots/[^/]+/")
_HUB_PATH = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)/(?P<inside>\w[\w./-]*)$")
_FILE = "params.npz"


@dataclass(frozen=True, slots=True)
class SaeSource:
    """Where an SAE's file is and what it is for.

    Attributes:
        sae_id: `{model}/{source}`, as in feature ids.
        path: the params.npz.
        site: the tensor it reads.
        stated_l0: active features per token that its folder's name promises, if it does.
        source: as the user named it.
    """

    sae_id: str
    path: Path
    site: Site
    stated_l0: float | None
    source: str


def locate_sae(
    path: str, model: str, kind: SiteKind | None = None, layer: int | None = None
) -> SaeSource:
    """What a path says of itself, in Gemma Scope's layout or told by the caller.

    A path that does not exist here and could be one on the hub
    (`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`) is downloaded.

    Args:
        path: a params.npz or the folder that holds it.
        model: the model's name in feature ids.
        kind: the site, where a folder called `res`, `mlp` or `att` (or a repository's name
            ending so) above the layer does not tell.
        layer: counted from 0, where a folder `layer_N` does not tell.

    Raises:
        SaeError: nothing is there, or site or layer cannot be told.
    """
    on_hub = None if Path(path).exists() else _HUB_PATH.match(path)
    folder = _hub_folder(on_hub["repo"], on_hub["inside"]) if on_hub else _local_folder(path)
    layout = _LAYOUT.search(folder)
    site = _tell_site(path, layout, kind, layer)
    return SaeSource(
        sae_id=f"{model}/{_source_id(layout, site) if layout else folder.rpartition('/')[2]}",
        path=_download(on_hub["repo"], on_hub["inside"]) if on_hub else _local_file(path),
        site=site,
        stated_l0=float(layout["l0"]) if layout else None,
        source=path,
    )


def _local_file(path: str) -> Path:
    return Path(path) / _FILE if Path(path).is_dir() else Path(path)


def _local_folder(path: str) -> str:
    file = _local_file(path)
    if not file.is_file():
        raise SaeError(
            "There is no SAE at this path.",
            where="[saes] paths",
            found=path,
            expected=f"a {_FILE}, the folder that holds one, or a path on the hub such as "
            "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
        )
    # Links are not followed: the hub's cache links to files that are named by their content.
    folder = Path(os.path.abspath(file)).parent.as_posix()
    return _HUB_CACHE.sub(r"/\g<name>/", folder)


def _hub_folder(repo: str, inside: str) -> str:
    return f"{repo}/{inside.rstrip('/').removesuffix(_FILE).rstrip('/')}"


def _tell_site(
    path: str, layout: re.Match[str] | None, kind: SiteKind | None, layer: int | None
) -> Site:
    if layout is not None:
        above = layout["above"]
        kind = kind or next((k for k in SITE_KINDS if above == k or above.endswith(f"-{k}")), None)
        layer = int(layout["layer"]) if layer is None else layer
    if kind is None or layer is None:
        raise SaeError(
            "The path does not say which tensor the SAE reads.",
            where=path,
            found=f"site {kind or 'unknown'}, layer {'unknown' if layer is None else layer}",
            expected=f"…-res/layer_20/width_16k/average_l0_71/{_FILE} or the like",
            mend='name both: {path = "…", site = "res", layer = 20}, site being one of '
            + ", ".join(SITE_KINDS),
        )
    return Site(layer, kind)


def _source_id(layout: re.Match[str], site: Site) -> str:
    if not _GEMMA_SCOPE.fullmatch(layout["above"]):
        return f"{site.layer}-{site.kind}-{layout['width']}"
    canonical = _canonical_l0(layout)
    suffix = "" if canonical == int(layout["l0"]) else f"-l0-{layout['l0']}"
    return f"{site.layer}-gemmascope-{site.kind}-{layout['width']}{suffix}"


def _canonical_l0(layout: re.Match[str]) -> int | None:
    choices = _read_canonical().get(layout["above"], {}).get(layout["width"], {})
    return choices.get(layout["layer"])


@cache
def _read_canonical() -> dict[str, dict[str, dict[str, int]]]:
    data = files("scopenote.extract").joinpath("gemma_scope_canonical.json").read_text("utf-8")
    choices: dict[str, dict[str, dict[str, int]]] = json.loads(data)
    return choices


def _download(repo: str, inside: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    folder = _hub_folder(repo, inside)
    in_repo = f"{folder.removeprefix(repo + '/')}/{_FILE}"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, in_repo))
    # What a repository answers, before the connection and the disk, whose errors are its bases.
    except errors.GatedRepoError as error:
        what, mend = "is not open to you", "accept its terms on its hub page and set HF_TOKEN"
        raise _cannot_download(repo, in_repo, what, mend, error) from error
    except errors.RepositoryNotFoundError as error:
        what, mend = "does not exist, or is private", "correct [saes] paths, or set HF_TOKEN"
        raise _cannot_download(repo, in_repo, what, mend, error) from error
    except errors.RemoteEntryNotFoundError as error:
        what, mend = "has no such file", _suggest(folder)
        raise _cannot_download(repo, in_repo, what, mend, error) from error
    # HTTPError is the HTTP library's own, which the hub's errors carry without declaring it.
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        what, mend = "cannot be reached", "check the connection, or download the file by hand"
        raise _cannot_download(repo, in_repo, what, mend, error) from error


def _suggest(folder: str) -> str:
    layout = _LAYOUT.search(folder)
    l0 = _canonical_l0(layout) if layout else None
    return (
        "see the repository's files on its hub page"
        if layout is None or l0 is None
        else f"the canonical choice is {folder[: layout.start('l0')]}{l0}"
    )


def _cannot_download(repo: str, in_repo: str, what: str, mend: str, error: Exception) -> SaeError:
    said = str(error).strip().splitlines()
    return SaeError(
        f"The SAE is not on this machine, and the hub's repository {repo} {what}.",
        where=f"[saes] paths, {in_repo} in {repo}",
        found=said[0] if said else type(error).__name__,
        expected=f"a local {_FILE} or its folder, or a file that the hub gives",
        mend=mend,
    )
