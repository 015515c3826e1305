"""JumpReLU sparse autoencoders, as Gemma Scope has them, and their arithmetic.

`pre = x @ W_enc + b_enc; f = pre * (pre > threshold); x_hat = f @ W_dec + b_dec`, strictly
greater, without subtracting `b_dec` and without scaling the input (Lieberum et al. 2024).
Some transcoders of Gemma Scope 2 add `x @ affine_skip_connection` to `x_hat`. Other people's ReLU
SAEs have thresholds of 0, and top-k SAEs let only a token's k largest features fire. A layer's
neurons take the same form (`neurons.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from .dictionary_learning import (
    DICTIONARY_CONFIG_FILE,
    DICTIONARY_FILE,
    read_dictionary_sae,
)
from .neurons import read_thresholds
from .other_saes import OTHER_CONFIG_FILE, OTHER_FILES, OtherSae, read_other_sae
from .sae_files import SKIP, check_sae_arrays, read_sae_arrays
from .sae_sources import SaeSource
from .sites import Site, site_width


@dataclass(frozen=True, slots=True)
class Sae:
    """A JumpReLU SAE, possibly top-k, ready to encode.

    Attributes:
        encoder: W_enc transposed, so that a block of features is contiguous.
        decoder: rows are feature directions, of unit norm in Gemma Scope.
        content_hash: of the file's bytes, and of the configuration that decides what they mean;
            of a neuron basis of its thresholds.
        skip: what a transcoder adds to its reconstruction straight from its input.
        k: of a top-k SAE, how many features of a token fire at most; the largest do.
    """

    source: SaeSource
    encoder: Float[torch.Tensor, "F D"]
    encoder_bias: Float[torch.Tensor, " F"]
    threshold: Float[torch.Tensor, " F"]
    decoder: Float[torch.Tensor, "F D"]
    decoder_bias: Float[torch.Tensor, " D"]
    content_hash: str
    skip: Float[torch.Tensor, "D D"] | None = None
    k: int | None = None

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

    @property
    def n_bytes(self) -> int:
        """Of all its weights."""
        return sum(weight.nbytes for weight in self._weights().values())

    def encode(self, x: Float[torch.Tensor, "T D"]) -> Float[torch.Tensor, "T F"]:
        """Feature activations, dense: the plain form that the fast path is tested against."""
        pre = torch.addmm(self.encoder_bias, x.to(self.encoder.dtype), self.encoder.T)
        fired = torch.where(pre > self.threshold, pre, 0.0)
        if self.k is None:
            return fired
        largest = pre.topk(self.k, dim=1).indices
        return torch.zeros_like(fired).scatter(1, largest, fired.gather(1, largest))

    def decode(self, f: Float[torch.Tensor, "T F"]) -> Float[torch.Tensor, "T D"]:
        """What the features alone reconstruct of what was encoded."""
        return torch.addmm(self.decoder_bias, f, self.decoder)

    def reconstruct(self, x: Float[torch.Tensor, "T D"]) -> Float[torch.Tensor, "T D"]:
        """The reconstruction of the target from what is read."""
        return self.add_skip(self.decode(self.encode(x)), x)

    def add_skip(
        self, decoded: Float[torch.Tensor, "T D"], x: Float[torch.Tensor, "T D"]
    ) -> Float[torch.Tensor, "T D"]:
        """What the features reconstruct, and what comes straight from the input `x`."""
        return (
            decoded if self.skip is None else torch.addmm(decoded, x.to(self.skip.dtype), self.skip)
        )

    def to(self, device: torch.device) -> Sae:
        """The same SAE on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self._weights().items()}
        return replace(self, **moved)

    def _weights(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}


def load_sae(source: SaeSource, config: Any) -> Sae:
    """Reads and checks an SAE's file, or a neuron basis's, against the model it is for.

    Args:
        source: where it is.
        config: the model's configuration, for the widths of the sites.

    Raises:
        SaeError: the file is missing, cut short, has other arrays, shapes that do not fit
            each other or the model, or values that are not finite; or it is of a kind that is
            not computed here.
    """
    site = source.site
    if source.path is None:
        raise ValueError(f"the thresholds of {source.sae_id} are not worked out yet")
    if source.is_neuron_basis:
        return _neuron_basis(source, read_thresholds(source.path, 2 * site_width(site, config)))
    files = [source.path]
    if source.path.name in OTHER_FILES:
        other, config_file = read_other_sae(source.path), OTHER_CONFIG_FILE
    elif source.path.name == DICTIONARY_FILE:
        other, config_file = read_dictionary_sae(source.path), DICTIONARY_CONFIG_FILE
    else:
        other, config_file = OtherSae(read_sae_arrays(source.path), None), None
    if config_file is not None:
        # It decides what the weights mean.
        files.append(source.path.parent / config_file)
    arrays = other.arrays
    check_sae_arrays(
        source.path, arrays, str(site), site_width(site, config), site_width(site.target, config)
    )
    as_tensor = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Sae(
        source=source,
        encoder=as_tensor["W_enc"].T.contiguous(),
        encoder_bias=as_tensor["b_enc"],
        threshold=as_tensor["threshold"],
        decoder=as_tensor["W_dec"].contiguous(),
        decoder_bias=as_tensor["b_dec"],
        content_hash=_hash_files(files),
        skip=as_tensor.get(SKIP),
        k=other.k,
    )


def _neuron_basis(source: SaeSource, threshold: Float32[np.ndarray, " F"]) -> Sae:
    """A layer's neurons in the form of an SAE: rows +e_i and -e_i, and nothing else.

    Encoding is then a product with a matrix that is nearly all zeros, and still exact: x_i and
    zeros are added up. It costs 2·D features, for Gemma 2 2B (D = 2,304) a little over a quarter
    of an SAE of 16,384.
    """
    width = len(threshold)
    rows = torch.eye(width // 2).repeat_interleave(2, dim=0)
    rows[1::2] *= -1
    # What the bytes mean follows from the id.
    digest = blake2b(source.sae_id.encode(), digest_size=16)
    digest.update(threshold.astype("<f4").tobytes())
    return Sae(
        source=source,
        encoder=rows,
        encoder_bias=torch.zeros(width),
        threshold=torch.from_numpy(threshold),
        decoder=rows,
        decoder_bias=torch.zeros(width // 2),
        content_hash=digest.hexdigest(),
    )


def _hash_files(paths: list[Path]) -> str:
    digest = blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
