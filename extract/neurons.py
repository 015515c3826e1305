"""Neurons as features: from which value on a coordinate of the MLP's output counts as active.

A neuron is a coordinate of what a layer's MLP adds to the residual stream (site `mlp`). It is two
units, each side rectified: relu(x) and relu(-x). A unit is active strictly above its 99th
percentile over a fixed prefix of the corpus, so on some 1% of tokens. An SAE's features are as
sparse: without a threshold every neuron would be active on half of the text, and have no contexts
that tell it from the others.

The percentile of n values is the smallest that at least 99% of them do not exceed (Hyndman and
Fan 1996, type 1; NumPy's `inverted_cdf`): a value that occurred, with nothing interpolated. A unit
that is positive on fewer than 1% of tokens has a threshold of 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Float32

from ..store.errors import CorpusError, ModelError, SaeError
from ..store.records import content_hash
from .device_memory import out_of_memory
from .models import SubjectModel, read_vectors
from .sites import Site
from .windows import SequenceBatch, TokenizedChunk, WindowShape, batch_sequences
from .workers import batch_workers

PREFIX_TOKENS = 65_536
"""Tokens of the prefix. 655 of them lie above a percentile of 99, so that a unit's real share of
active tokens is 1% with a standard error of 0.04 points (√(0.01 · 0.99 / 65,536)), more where
tokens of a document are alike. Reading them costs what as many tokens of the corpus cost."""

PERCENT = 99

# To be raised when the same prefix gives other thresholds.
_VERSION = 1


def neuron_shapes(d: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a basis of so many neurons, by Gemma Scope's names."""
    return {
        "W_enc": (d, 2 * d),
        "W_dec": (2 * d, d),
        "b_enc": (2 * d,),
        "b_dec": (d,),
        "threshold": (2 * d,),
    }


def expected_l0(n_units: int) -> float:
    """Active units per token, at most, on text like that of the prefix."""
    return n_units * (100 - PERCENT) / 100


def thresholds_id(
    model: SubjectModel,
    site: Site,
    prefix: Sequence[TokenizedChunk],
    shape: WindowShape,
    max_batch_tokens: int,
) -> str:
    """A name that follows from all that decides a layer's thresholds, but the kind of machine."""
    decides = [_VERSION, PERCENT, model.name, model.content_hash, str(model.network.dtype)]
    decides += [site.layer, shape.sequence_content, max_batch_tokens]
    decides += [[chunk.chunk_id, chunk.n_tokens] for chunk in prefix]
    return f"neurons-{site.layer:03d}-{content_hash(decides)}"


def find_thresholds(
    model: SubjectModel,
    sites: Sequence[Site],
    prefix: Sequence[TokenizedChunk],
    max_batch_tokens: int,
    advance: Callable[[int], object],
) -> dict[Site, Float32[np.ndarray, " F"]]:
    """Each unit's 99th percentile over the prefix, exactly; units in the order of feature numbers.

    One pass of the model serves all sites. Of each unit the largest values so far are kept, 1% of
    the prefix: 12 MB for a layer of Gemma 2 2B.

    Args:
        model: as deep as the sites.
        sites: of kind `mlp`.
        prefix: as `take_prefix` gives it.
        max_batch_tokens: padded tokens that the model sees at once.
        advance: told the number of tokens of each batch that is done.

    Raises:
        CorpusError: the prefix has no tokens but special ones.
        ModelError: the model gives values that are not finite.
    """
    keep = 1 + _n_above(sum(chunk.n_tokens for chunk in prefix))
    largest: dict[Site, torch.Tensor] = {}
    n_tokens = 0
    for batch in _read_prefix(model, list(sites), prefix, max_batch_tokens, keep):
        n_tokens += batch.n_tokens
        for site, values in batch.largest.items():
            before = largest.get(site, values[:, :0])
            largest[site] = _largest(torch.cat([before, values], dim=1), keep)
        advance(batch.n_seen)
    if not n_tokens:
        raise CorpusError(
            "The beginning of the corpus has no text to take the neurons' percentiles from.",
            found="special tokens only",
            mend="check [corpus] text_field and chat",
        )
    return {site: _finite(site, largest[site], _n_above(n_tokens)) for site in sites}


def _n_above(n_tokens: int) -> int:
    """How many of so many values lie above the percentile, where none are equal."""
    return n_tokens * (100 - PERCENT) // 100


@dataclass(frozen=True, slots=True)
class _BatchLargest:
    """Of one batch, each unit's largest values by site.

    Attributes:
        n_tokens: without special ones.
        n_seen: with them.
    """

    n_tokens: int
    n_seen: int
    largest: dict[Site, Float[torch.Tensor, "F K"]]


def _read_prefix(
    model: SubjectModel,
    sites: list[Site],
    prefix: Sequence[TokenizedChunk],
    max_batch_tokens: int,
    keep: int,
) -> Iterator[_BatchLargest]:
    """The prefix's batches, worked on side by side, in order."""
    tokenizer = model.tokenizer
    special = frozenset(tokenizer.all_special_ids)
    batches = chain.from_iterable(
        batch_sequences(
            chunk, tokenizer.bos_token_id, tokenizer.pad_token_id or 0, special, max_batch_tokens
        )
        for chunk in prefix
    )
    waiting: deque[Future[list[_BatchLargest]]] = deque()
    with batch_workers(model.device, model.reader.cancelled) as (executor, n_workers):
        for batch in batches:
            waiting.append(executor.submit(_read_batch, model, sites, batch, keep))
            if len(waiting) >= 2 * n_workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _read_batch(
    model: SubjectModel, sites: list[Site], batch: SequenceBatch, keep: int
) -> list[_BatchLargest]:
    """One batch, in halves where the device has no room for it."""
    try:
        vectors = read_vectors(model, batch, sites)
        with torch.inference_mode():
            if batch.is_special is not None:
                is_text = torch.from_numpy(~batch.is_special).to(model.device)
                vectors = {site: x[is_text] for site, x in vectors.items()}
            largest = {site: _largest(_units(x), keep) for site, x in vectors.items()}
        n_special = 0 if batch.is_special is None else int(batch.is_special.sum())
        n_seen = len(batch.position)
        return [_BatchLargest(n_seen - n_special, n_seen, largest)]
    except torch.OutOfMemoryError as error:
        n_rows = len(batch.input_ids)
        if n_rows == 1:
            raise out_of_memory(model, [], batch.input_ids.size) from error
        torch.cuda.empty_cache()
    half = n_rows // 2
    return [
        found
        for begin, end in ((0, half), (half, n_rows))
        for found in _read_batch(model, sites, batch.rows(begin, end)[0], keep)
    ]


def _units(x: Float[torch.Tensor, "T D"]) -> Float[torch.Tensor, "F T"]:
    """Each coordinate's two sides, rectified, in the order of feature numbers."""
    x_t = x.T.float()
    return torch.stack([x_t, -x_t], dim=1).reshape(2 * len(x_t), len(x)).relu()


def _largest(values: Float[torch.Tensor, "F N"], keep: int) -> Float[torch.Tensor, "F K"]:
    return values.topk(min(keep, values.shape[1]), dim=1, sorted=False).values


def _finite(
    site: Site, largest: Float[torch.Tensor, "F K"], n_above: int
) -> Float32[np.ndarray, " F"]:
    thresholds: np.ndarray = largest.sort(dim=1, descending=True).values[:, n_above].cpu().numpy()
    # A value that is no number counts as the largest.
    bad = int((~torch.isfinite(largest)).any(dim=1).sum())
    if bad:
        raise ModelError(
            "The model gives values that are not finite.",
            where=f"the {site.tensor}",
            found=f"{bad} of {len(thresholds)} units",
            expected="finite numbers",
            mend="download or copy the model again, or set another [model] dtype",
        )
    return np.ascontiguousarray(thresholds)


def thresholds_table(thresholds: Float32[np.ndarray, " F"]) -> pa.Table:
    """A layer's thresholds as a part holds them."""
    features = np.arange(len(thresholds), dtype=np.int32)
    return pa.table({"feature": features, "threshold": thresholds})


def read_thresholds(file: Path, width: int) -> Float32[np.ndarray, " F"]:
    """The thresholds in a part's table.

    Raises:
        SaeError: it is damaged, or of another model.
    """
    try:
        thresholds = pq.read_table(file, columns=["threshold"])["threshold"].to_numpy()
        found = f"{len(thresholds)} thresholds of type {thresholds.dtype}"
        is_sound = len(thresholds) == width and thresholds.dtype == np.float32
        is_sound = is_sound and bool(np.isfinite(thresholds).all() and (thresholds >= 0).all())
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        is_sound, found = False, str(error) or type(error).__name__
    if not is_sound:
        raise SaeError(
            "The thresholds of neurons cannot be read.",
            where=str(file),
            found=found,
            expected=f"{width} finite float32 values of at least 0",
            mend=f"remove the folder {file.parent}; they will be worked out again",
        )
    return np.array(thresholds)
