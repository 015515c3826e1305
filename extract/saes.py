"""Gemma Scope's JumpReLU sparse autoencoders: their files, their checks, their arithmetic.

`pre = x @ W_enc + b_enc; f = pre * (pre > threshold); x_hat = f @ W_dec + b_dec`, strictly
greater, without subtracting `b_dec` and without scaling the input (Lieberum et al. 2024).
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..store.errors import SaeError
from .sites import SITE_KINDS, Site, SiteKind, site_width

_ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


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
    width, d_in = _check_shapes(source, arrays, site_width(source.site, config))
    _check_values(source, arrays)
    as_tensor = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert as_tensor["W_enc"].shape == (d_in, width)
    return Sae(
        source=source,
        encoder=as_tensor["W_enc"].T.contiguous(),
        encoder_bias=as_tensor["b_enc"],
        threshold=as_tensor["threshold"],
        decoder=as_tensor["W_dec"].contiguous(),
        decoder_bias=as_tensor["b_dec"],
        content_hash=_hash_file(source.path),
    )


_LAYOUT = re.compile(r"layer_(?P<layer>\d+)/width_(?P<width>\w+?)/average_l0_(?P<l0>\d+)$")


def locate_sae(
    path: str, model: str, kind: SiteKind | None = None, layer: int | None = None
) -> SaeSource:
    """What a local path says of itself, in Gemma Scope's layout or told by the caller.

    Args:
        path: a params.npz or the folder that holds it.
        model: the model's name in feature ids.
        kind: the site, where a folder called `res`, `mlp` or `att` (or a repository's name
            ending so) above the layer does not tell.
        layer: counted from 0, where a folder `layer_N` does not tell.

    Raises:
        SaeError: nothing is there, or site or layer cannot be told.
    """
    file = Path(path) / "params.npz" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise SaeError(
            "There is no SAE at this path.",
            where="[saes] paths",
            found=path,
            expected="a params.npz, or the folder that holds one",
        )
    folder = file.resolve().parent
    layout = _LAYOUT.search(folder.as_posix())
    above = folder.parents[2].name if layout and len(folder.parents) > 2 else ""
    told_kind = kind or next((k for k in SITE_KINDS if above == k or above.endswith(f"-{k}")), None)
    told_layer = layer if layer is not None else int(layout["layer"]) if layout else None
    if told_kind is None or told_layer is None:
        raise SaeError(
            "The path does not say which tensor the SAE reads.",
            where=path,
            found=f"site {told_kind or 'unknown'}, layer {'unknown' if told_layer is None else told_layer}",
            expected="…-res/layer_20/width_16k/average_l0_71/params.npz or the like",
            mend='name both: {path = "…", site = "res", layer = 20}, site being one of '
            + ", ".join(SITE_KINDS),
        )
    name = f"{told_layer}-{told_kind}-{layout['width']}" if layout else folder.name
    return SaeSource(
        sae_id=f"{model}/{name}",
        path=file,
        site=Site(told_layer, told_kind),
        stated_l0=float(layout["l0"]) if layout else None,
        source=path,
    )


def _read_arrays(source: SaeSource) -> dict[str, Any]:
    try:
        with np.load(source.path, allow_pickle=False) as npz:
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
                name: np.ascontiguousarray(npz[by_name[name.lower()]], dtype=np.float32)
                for name in _ARRAYS
            }
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise SaeError(
            "The SAE's file cannot be read; it is damaged or was cut short.",
            where=str(source.path),
            found=str(error),
            expected="a NumPy .npz",
            mend="download or copy it again",
        ) from error


def _check_shapes(source: SaeSource, arrays: dict[str, Any], site: int) -> tuple[int, int]:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    width = shapes["threshold"][0] if len(shapes["threshold"]) == 1 else -1
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
    return width, site


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
