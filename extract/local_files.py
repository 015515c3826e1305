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
from safetensors import SafetensorError, safe_open

from ..store.errors import ModelError, SaeError
from .gemma_scope_index import check_published, resolve_short_name
from .models import TOY, model_path
from .other_saes import SPARSIFY_FILE
from .sae_sources import SAE_FILES

_SINGLE_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    # NumPy has no bfloat16; of this one only the size matters.
    "BF16": np.dtype(np.float16),
}


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
    """The file of weights that a path means; None if it is not on this machine.

    Args:
        path: a file, a folder, a short name, or a path on the hub
            (`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`).
        folders: copies of repositories of the hub: each the repository itself, or the
            folder in which it lies with or without its organization.

    Raises:
        SaeError: Gemma Scope has no such SAE.
    """
    here = Path(path)
    if here.exists():
        return _first_file(here) if here.is_dir() else here if here.is_file() else None
    parts = (resolve_short_name(path) or path).rstrip("/").split("/")
    names = [parts.pop()] if parts[-1] in SAE_FILES else SAE_FILES
    if len(parts) < 3:
        return None
    organization, repository, *inside = parts
    check_published(f"{organization}/{repository}", "/".join(inside))
    for folder in folders:
        candidates = [folder / organization / repository, folder / repository]
        if folder.absolute().name == repository:
            candidates.append(folder)
        for candidate in candidates:
            if file := _first_file(candidate.joinpath(*inside), names):
                return file
    cached = (_find_cached(f"{organization}/{repository}", "/".join([*inside, n])) for n in names)
    return next(filter(None, cached), None)


def _first_file(folder: Path, names: Sequence[str] = SAE_FILES) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_sae_headers(file: Path) -> dict[str, ArrayHeader]:
    """Shape and type of every array of an SAE's file, by its names in Gemma Scope.

    Raises:
        SaeError: the file is damaged or holds something else.
    """
    if file.suffix != ".safetensors":
        return read_npz_headers(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            headers = {
                name: ArrayHeader(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, KeyError) as error:
        raise SaeError(
            "The SAE's file cannot be read; it is damaged, cut short or of another kind.",
            where=str(file),
            found=str(error) or type(error).__name__,
            expected="safetensors of floating-point numbers",
            mend="download or copy it again",
        ) from error
    if file.name == SPARSIFY_FILE and (encoder := headers.get("encoder.weight")) is not None:
        headers["W_enc"] = ArrayHeader(encoder.shape[::-1], encoder.dtype)
        del headers["encoder.weight"]
    return headers


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
