"""What of a model or an SAE lies on this machine: in a folder or in the hub's cache.

Nothing here asks the network, so it can be asked of anything that a configuration names.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..store.errors import ModelError, SaeError
from .models import TOY, model_path

_PARAMETERS = "params.npz"
_SINGLE_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What a file says of an array without its numbers being read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_values(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


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
    """The params.npz that a path means; None if it is not on this machine.

    Args:
        path: a file, a folder, or a path on the hub
            (`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`).
        folders: copies of repositories of the hub: each the repository itself, or the
            folder in which it lies with or without its organization.
    """
    here = Path(path)
    if here.exists():
        file = here / _PARAMETERS if here.is_dir() else here
        return file if file.is_file() else None
    parts = path.rstrip("/").removesuffix(_PARAMETERS).rstrip("/").split("/")
    if len(parts) < 3:
        return None
    organization, repository, *inside = parts
    for folder in folders:
        candidates = [folder / organization / repository, folder / repository]
        if folder.absolute().name == repository:
            candidates.append(folder)
        for candidate in candidates:
            file = candidate.joinpath(*inside, _PARAMETERS)
            if file.is_file():
                return file
    return _find_cached(f"{organization}/{repository}", "/".join([*inside, _PARAMETERS]))


def read_npz_headers(file: Path) -> dict[str, ArrayHeader]:
    """Shape and type of every array of an .npz; reads a few hundred bytes of each.

    Raises:
        SaeError: the file is damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return {
                name.removesuffix(".npy"): _read_header(archive, name)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SaeError(
            "The SAE's file cannot be read; it is damaged, cut short or of another kind.",
            where=str(file),
            found=str(error) or type(error).__name__,
            expected="a NumPy .npz of plain arrays of numbers",
            mend="download or copy it again",
        ) from error


def _read_header(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return ArrayHeader(shape, dtype)


def _find_cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None  # no name that the hub could have
    # Besides a path and None there is a mark for "known not to exist there".
    return Path(found) if isinstance(found, str) else None
