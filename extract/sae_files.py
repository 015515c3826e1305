"""The arrays of an SAE, from NumPy's .npz or from safetensors, and whether they can be used.

Gemma Scope has the former, Gemma Scope 2 the latter; names differ in case only.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from ..store.errors import SaeError

_ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
SKIP = "affine_skip_connection"
"""The optional array that leads from a transcoder's input straight to its output."""


def read_sae_arrays(path: Path) -> dict[str, np.ndarray]:
    """An SAE's arrays as float32: W_enc, W_dec, b_enc, b_dec, threshold and, if there, SKIP.

    Args:
        path: a .npz, or a .safetensors if it is called so.

    Raises:
        SaeError: the file is missing, cut short or has other arrays.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)


def check_sae_arrays(
    path: Path, arrays: dict[str, np.ndarray], site: str, d_in: int, d_out: int
) -> None:
    """Makes sure that an SAE's arrays can be used.

    Args:
        path: where they are from.
        arrays: by their names in Gemma Scope.
        site: what the SAE reads, in words.
        d_in: length of the vectors that it reads.
        d_out: length of those that it reconstructs.

    Raises:
        SaeError: shapes do not fit each other or the site, values are not finite, or thresholds
            are below zero.
    """
    _check_shapes(path, arrays, site, d_in, d_out)
    _check_values(path, arrays)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with opened as npz:
            return {
                name: np.asarray(npz[spelled], dtype=np.float32, order="C")
                for name, spelled in _spellings(path, npz.files).items()
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, TypeError, ValueError) as error:
        raise unreadable_sae(path, error, "a NumPy .npz of plain arrays of numbers") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        # Through torch, because NumPy has no bfloat16.
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable_sae(path, error, "safetensors of numbers") from error
    return {
        name: np.asarray(tensors[spelled].float().numpy(), order="C")
        for name, spelled in _spellings(path, list(tensors)).items()
    }


def _spellings(path: Path, found: list[str]) -> dict[str, str]:
    """The arrays' names as we write them, and as the file does."""
    by_name = {name.lower(): name for name in found}
    if any(name.lower() not in by_name for name in _ARRAYS):
        raise SaeError(
            "The SAE's file lacks arrays.",
            where=str(path),
            found=", ".join(found),
            expected=", ".join(_ARRAYS),
        )
    return {name: by_name[name.lower()] for name in (*_ARRAYS, SKIP) if name.lower() in by_name}


def unreadable_sae(path: Path, error: Exception, expected: str) -> SaeError:
    """The error where a file of weights is not what it should be."""
    return SaeError(
        "The SAE's file cannot be read; it is damaged, cut short or of another kind.",
        where=str(path),
        found=(str(error).splitlines() or [type(error).__name__])[0],
        expected=expected,
        mend="download or copy it again",
    )


def _check_shapes(
    path: Path, arrays: dict[str, np.ndarray], site: str, d_in: int, d_out: int
) -> None:
    shapes: dict[str, tuple[Any, ...]] = {name: array.shape for name, array in arrays.items()}
    width = arrays["b_enc"].size
    wanted = {
        "W_enc": (d_in, width),
        "W_dec": (width, d_out),
        "b_enc": (width,),
        "b_dec": (d_out,),
        "threshold": (width,),
        SKIP: (d_in, d_out),
    }
    wrong = [name for name in arrays if shapes[name] != wanted[name]]
    if wrong:
        raise SaeError(
            f"The SAE's shapes do not fit the model's {site}.",
            where=str(path),
            found=", ".join(f"{name} {shapes[name]}" for name in wrong),
            expected=", ".join(f"{name} {wanted[name]}" for name in wrong),
            mend=f"the site's vectors have {d_in} numbers: is this SAE for another model or site?",
        )


def _check_values(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise SaeError(
                "The SAE has weights that are not finite.",
                where=f"{path}, array {name}",
                found=f"{bad} of {array.size} values",
                expected="finite float32 values",
                mend="download or copy it again",
            )
    negative = int((arrays["threshold"] < 0).sum())
    if negative:
        raise SaeError(
            "The SAE has thresholds below zero, which JumpReLU does not allow.",
            where=f"{path}, array threshold",
            found=f"{negative} values below zero, the least {arrays['threshold'].min():.4g}",
            expected="values of at least 0",
        )
