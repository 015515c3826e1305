"""Gemma Scope's JumpReLU sparse autoencoders: their files, their checks, their arithmetic.

`pre = x @ W_enc + b_enc; f = pre * (pre > threshold); x_hat = f @ W_dec + b_dec`, strictly
greater, without subtracting `b_dec` and without scaling the input (Lieberum et al. 2024).
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..store.errors import SaeError
from .sae_sources import SaeSource
from .sites import Site, site_width

_ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


@dataclass(frozen=True, slots=True)
class Sae:
    """A JumpReLU SAE, ready to encode.

    Attributes:
        encoder: W_enc transposed, so that a block of features is contiguous.
        decoder: rows are feature directions, of unit norm in Gemma Scope.
        content_hash: of the file's bytes.
    """

    source: SaeSource
    encoder: Float[torch.Tensor, "F D"]
    encoder_bias: Float[torch.Tensor, " F"]
    threshold: Float[torch.Tensor, " F"]
    decoder: Float[torch.Tensor, "F D"]
    decoder_bias: Float[torch.Tensor, " D"]
    content_hash: str

    @property
    def sae_id(self) -> str:
        """`{model}/{source}`."""
        return self.source.sae_id

    @property
    def site(self) -> Site:
        """The tensor it reads."""
        return self.source.site

    @property
    def target(self) -> Site:
        """The tensor it reconstructs: the one it reads, unless it is a transcoder."""
        return self.source.site.target

    @property
    def width(self) -> int:
        """How many features it has."""
        return int(self.encoder.shape[0])

    def encode(self, x: Float[torch.Tensor, "T D"]) -> Float[torch.Tensor, "T F"]:
        """Feature activations, dense: the plain form that the fast path is tested against."""
        pre = torch.addmm(self.encoder_bias, x.to(self.encoder.dtype), self.encoder.T)
        return torch.where(pre > self.threshold, pre, 0.0)

    def decode(self, f: Float[torch.Tensor, "T F"]) -> Float[torch.Tensor, "T D"]:
        """The reconstruction of what was encoded."""
        return torch.addmm(self.decoder_bias, f, self.decoder)

    def to(self, device: torch.device) -> Sae:
        """The same SAE on another device."""
        return Sae(
            self.source,
            self.encoder.to(device),
            self.encoder_bias.to(device),
            self.threshold.to(device),
            self.decoder.to(device),
            self.decoder_bias.to(device),
            self.content_hash,
        )


def load_sae(source: SaeSource, config: Any) -> Sae:
    """Reads and checks an SAE's params.npz against the model it is for.

    Args:
        source: where it is.
        config: the model's configuration, for the width of the site.

    Raises:
        SaeError: the file is missing, cut short, has other arrays, shapes that do not fit
            each other or the model, or values that are not finite.
    """
    arrays = _read_arrays(source)
    _check_shapes(source, arrays, site_width(source.site, config))
    _check_values(source, arrays)
    as_tensor = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Sae(
        source=source,
        encoder=as_tensor["W_enc"].T.contiguous(),
        encoder_bias=as_tensor["b_enc"],
        threshold=as_tensor["threshold"],
        decoder=as_tensor["W_dec"].contiguous(),
        decoder_bias=as_tensor["b_dec"],
        content_hash=_hash_file(source.path),
    )


def _read_arrays(source: SaeSource) -> dict[str, Any]:
    try:
        opened = np.load(source.path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with opened as npz:
            # Some uploads spell W_enc as w_enc.
            by_name = {name.lower(): name for name in npz.files}
            missing = [name for name in _ARRAYS if name.lower() not in by_name]
            if missing:
                raise SaeError(
                    "The SAE's file lacks arrays.",
                    where=str(source.path),
                    found=", ".join(npz.files),
                    expected=", ".join(_ARRAYS),
                )
            return {
                name: np.asarray(npz[by_name[name.lower()]], dtype=np.float32, order="C")
                for name in _ARRAYS
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, TypeError, ValueError) as error:
        raise SaeError(
            "The SAE's file cannot be read; it is damaged, cut short or of another kind.",
            where=str(source.path),
            found=str(error) or type(error).__name__,
            expected="a NumPy .npz of plain arrays of numbers",
            mend="download or copy it again",
        ) from error


def _check_shapes(source: SaeSource, arrays: dict[str, Any], site: int) -> None:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    width = arrays["b_enc"].size
    wanted = {
        "W_enc": (site, width),
        "W_dec": (width, site),
        "b_enc": (width,),
        "b_dec": (site,),
        "threshold": (width,),
    }
    wrong = [name for name in _ARRAYS if shapes[name] != wanted[name]]
    if wrong:
        raise SaeError(
            f"The SAE's shapes do not fit the model's {source.site}.",
            where=str(source.path),
            found=", ".join(f"{name} {shapes[name]}" for name in wrong),
            expected=", ".join(f"{name} {wanted[name]}" for name in wrong),
            mend=f"the site's vectors have {site} numbers: is this SAE for another model or site?",
        )


def _check_values(source: SaeSource, arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise SaeError(
                "The SAE has weights that are not finite.",
                where=f"{source.path}, array {name}",
                found=f"{bad} of {array.size} values",
                expected="finite float32 values",
                mend="download or copy it again",
            )
    negative = int((arrays["threshold"] < 0).sum())
    if negative:
        raise SaeError(
            "The SAE has thresholds below zero, which JumpReLU does not allow.",
            where=f"{source.path}, array threshold",
            found=f"{negative} values below zero, the least {arrays['threshold'].min():.4g}",
            expected="values of at least 0",
        )


def _hash_file(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
