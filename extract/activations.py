"""From a site's vectors to the features that fire, without ever holding all activations.

The encoder runs in blocks of features over all tokens of a batch, small enough to stay in
cache; of each block only the values above threshold are kept. Blocks are laid out feature by
token, so what is kept is already sorted by feature, then token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32

from .firing_passes import find_above
from .saes import Sae

# Numbers in one block of pre-activations (8 MB). Measured on two cores of a 2.5 GHz Xeon:
# smaller blocks lose to the matrix product's overhead, larger ones leave the cache.
_BLOCK_VALUES = 1 << 21

# The same on a GPU (256 MB), where the host waits once for each block: 4,096 tokens of a 16k SAE
# are one. Reasoned, not measured.
_GPU_BLOCK_VALUES = 1 << 26


@dataclass(frozen=True, slots=True)
class Firings:
    """Every activation above threshold of one SAE on one batch, by feature, then token."""

    feature: Int32[np.ndarray, " N"]
    token: Int32[np.ndarray, " N"]
    value: Float32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.feature)

    def where(self, keep: np.ndarray) -> Firings:
        """The firings at which the mask is true, or those at these places, in their order."""
        return Firings(self.feature[keep], self.token[keep], self.value[keep])

    def every(self, stride: int) -> Firings:
        """Those of every stride-th token, which become tokens 0, 1 and so on."""
        chosen = self.where(self.token % stride == 0)
        return Firings(chosen.feature, chosen.token // stride, chosen.value)


def block_values_on(device: torch.device) -> int:
    """How many pre-activations are held at once, whatever an SAE's width."""
    return _BLOCK_VALUES if device.type == "cpu" else _GPU_BLOCK_VALUES


def find_firings(
    sae: Sae, x: Float[torch.Tensor, "T D"], block_values: int | None = None
) -> Firings:
    """The features that fire on each token: JumpReLU, strictly above threshold.

    Of a top-k SAE they are besides among the k largest of the token; which of equal ones is not
    defined.

    Args:
        sae: on the same device as `x`.
        x: the site's vectors.
        block_values: how many pre-activations to hold at once; by default what suits the
            device.
    """
    n_tokens = x.shape[0]
    at_once = block_values or block_values_on(x.device)
    rows = max(1, min(sae.width, at_once // max(1, n_tokens)))
    x_t = x.to(sae.encoder.dtype).T
    block = torch.empty((rows, n_tokens), dtype=x_t.dtype, device=x_t.device)
    if sae.k is not None:
        return _find_largest(sae, x_t, block, sae.k)
    found = _FoundOnCpu(block) if block.device.type == "cpu" else _FoundOnGpu(block)
    for begin in range(0, sae.width, rows):
        end = min(begin + rows, sae.width)
        pre = block[: end - begin]
        torch.addmm(sae.encoder_bias[begin:end, None], sae.encoder[begin:end], x_t, out=pre)
        found.add(pre, sae.threshold[begin:end], begin)
    return found.finish()


def reconstruct(
    sae: Sae, firings: Firings, x: Float[torch.Tensor, "T D"]
) -> Float[torch.Tensor, "T D"]:
    """What the SAE makes of these firings, on the SAE's device.

    Args:
        sae: on the device of `x`.
        firings: what fires on each token.
        x: the site's vectors, which some transcoders pass on.
    """
    n_tokens = len(x)
    order = np.argsort(firings.token, kind="stable")
    counts = np.bincount(firings.token, minlength=n_tokens)
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
    device = sae.decoder.device
    decoded = torch.nn.functional.embedding_bag(
        torch.from_numpy(firings.feature[order].astype(np.int64)).to(device),
        sae.decoder,
        torch.from_numpy(offsets).to(device),
        mode="sum",
        per_sample_weights=torch.from_numpy(firings.value[order]).to(device, sae.decoder.dtype),
    )
    return sae.add_skip(decoded + sae.decoder_bias, x)


def _find_largest(
    sae: Sae, x_t: Float[torch.Tensor, "D T"], block: Float[torch.Tensor, "R T"], k: int
) -> Firings:
    rows, n_tokens = block.shape
    value = block.new_empty((0, n_tokens))
    feature = torch.empty((0, n_tokens), dtype=torch.long, device=block.device)
    for begin in range(0, sae.width, rows):
        end = min(begin + rows, sae.width)
        pre = block[: end - begin]
        torch.addmm(sae.encoder_bias[begin:end, None], sae.encoder[begin:end], x_t, out=pre)
        of_block, row = pre.topk(min(k, len(pre)), dim=0)
        value, feature = torch.cat([value, of_block]), torch.cat([feature, row + begin])
        value, place = value.topk(min(k, len(value)), dim=0)
        feature = feature.gather(0, place)
    rank, token = (value > sae.threshold[feature]).nonzero(as_tuple=True)
    found = Firings(
        feature[rank, token].int().cpu().numpy(),
        token.int().cpu().numpy(),
        value[rank, token].float().cpu().numpy(),
    )
    return found.where(np.lexsort((found.token, found.feature)))


class _FoundOnCpu:
    """Gathers firings in compiled code, with room for all of a block that is used again."""

    def __init__(self, block: Float[torch.Tensor, "R T"]) -> None:
        n = block.numel()
        self._room = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
        self._found: list[tuple[np.ndarray, ...]] = []

    def add(
        self, pre: Float[torch.Tensor, "R T"], threshold: Float[torch.Tensor, " R"], begin: int
    ) -> None:
        n = find_above(pre.numpy(), threshold.numpy(), begin, self._room)
        self._found.append(tuple(column[:n].copy() for column in self._room))

    def finish(self) -> Firings:
        return Firings(*(np.concatenate(columns) for columns in zip(*self._found, strict=True)))


class _FoundOnGpu:
    """Gathers firings by torch alone, where the block lies; all come to the host at the end."""

    def __init__(self, block: Float[torch.Tensor, "R T"]) -> None:
        self._found: list[tuple[torch.Tensor, ...]] = []

    def add(
        self, pre: Float[torch.Tensor, "R T"], threshold: Float[torch.Tensor, " R"], begin: int
    ) -> None:
        row, token = (pre > threshold[:, None]).nonzero(as_tuple=True)
        self._found.append(((row + begin).int(), token.int(), pre[row, token].float()))

    def finish(self) -> Firings:
        columns = zip(*self._found, strict=True)
        return Firings(*(torch.cat(column).cpu().numpy() for column in columns))
