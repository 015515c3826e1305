"""What of a model or an SAE lies on this machine: in a folder or in the hub's cache.

Nothing here asks the network, so it can be asked of anything that a configuration names.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..store.errors import ModelError, SaeError
from .dictionary_learning import DICTIONARY_FILE, read_dictionary_shapes
from .gemma_scope_index import check_published, resolve_short_name
from .models import TOY, model_path
from .other_saes import OTHER_FILES, SPARSIFY_FILE
from .sae_sources import SAE_FILES

_SINGLE_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


def find_local_model(name: str) -> Path | None:
    """The folder with a model's config.json; None if the model is not on this machine.

    Args:
        name: hub id, local folder, or `toy`.
    """
    if name == TOY or (Path(name) / "config.json").is_file():
        return Path(model_path(name))
    config = _find_cached(name, "config.json")
    return None if config is None else config.parent


def missing_weights(folder: Path) -> str | None:
    """The first file of weights that a model's folder lacks; None if it has them all.

    Raises:
        ModelError: the index of the files cannot be read.
    """
    if (folder / _SINGLE_WEIGHTS).is_file():
        return None
    index = folder / _WEIGHTS_INDEX
    if not index.is_file():
        return _SINGLE_WEIGHTS
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            "The index of the model's weights cannot be read.",
            where=str(index),
            found=str(error) or type(error).__name__,
            expected="JSON with a weight_map",
            mend="download or copy the model again",
        ) from error
    return next((part for part in sorted(parts) if not (folder / part).is_file()), None)


def find_local_sae(path: str, folders: Sequence[Path] = ()) -> Path | None:
    """The file of weights that a path means; None if it is not on this machine.

    Args:
        path: a file, a folder, a short name (`gemma-2-2b/20-gemmascope-res-16k`), or a path on
            the hub (`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`).
        folders: copies of repositories of the hub: each the repository itself, or the
            folder in which it lies with or without its organization.

    Raises:
        SaeError: a short name or a hub path of what Gemma Scope does not have.
    """
    if Path(path).exists():
        return _first_file([Path(path)] if Path(path).is_file() else _in_folder(Path(path)))
    organization, _, rest = (resolve_short_name(path) or path).rstrip("/").partition("/")
    repository, _, inside = rest.partition("/")
    if not inside:
        return None
    names_file = inside.endswith(SAE_FILES)
    check_published(
        f"{organization}/{repository}", inside.rpartition("/")[0] if names_file else inside
    )
    places = [place for folder in folders for place in _copies(folder, organization, repository)]
    candidates = [
        file for place in places for file in (place / inside, *_in_folder(place / inside))
    ]
    found = _first_file(candidates)
    if found is not None:
        return found
    names = [inside] if names_file else [f"{inside}/{n}" for n in SAE_FILES]
    cached = (_find_cached(f"{organization}/{repository}", name) for name in names)
    return next((file for file in cached if file is not None), None)


def read_sae_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every array of an SAE's file, without its numbers being read.

    The encoder of sparsify and all arrays of dictionary_learning are given under Gemma Scope's
    names, and lie as there.

    Raises:
        SaeError: the file is damaged or holds something else.
    """
    if file.name == DICTIONARY_FILE:
        return read_dictionary_shapes(file)
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as tensors:
                names = tensors.keys()
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
            if file.name == SPARSIFY_FILE and "encoder.weight" in shapes:
                shapes["W_enc"] = shapes.pop("encoder.weight")[::-1]
            if file.name in OTHER_FILES and "W_enc" in shapes:
                # In memory each feature has one.
                shapes.setdefault("threshold", shapes["W_enc"][1:])
            return shapes
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _read_shape(archive, name) for name in members}
    except (zipfile.BadZipFile, SafetensorError, OSError, ValueError) as error:
        raise SaeError(
            "The SAE's file cannot be read; it is damaged, cut short or of another kind.",
            where=str(file),
            found=str(error) or type(error).__name__,
            expected="a NumPy .npz or safetensors of plain arrays of numbers",
            mend="download or copy it again",
        ) from error


def _read_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, _ = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, _ = np.lib.format.read_array_header_2_0(member)
    return shape


def _copies(folder: Path, organization: str, repository: str) -> list[Path]:
    """Where in a folder a copy of a repository may lie."""
    itself = [folder] if folder.absolute().name == repository else []
    return [folder / organization / repository, folder / repository, *itself]


def _in_folder(folder: Path) -> list[Path]:
    return [folder / name for name in SAE_FILES]


def _first_file(candidates: Sequence[Path]) -> Path | None:
    return next((file for file in candidates if file.is_file()), None)


def _find_cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None  # no name that the hub could have
    # Besides a path and None there is a mark for "known not to exist there".
    return Path(found) if isinstance(found, str) else None
