"""How much memory and disk a collection takes, from its sizes alone.

Every need comes with its arithmetic, so that a person can check it and see what to change. They
are estimates of what is largest, not bounds: allocators, Parquet and DuckDB take some beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..store.splits import SPLITS
from .firing_passes import FeatureCounts
from .kept_windows import KeptWindows
from .sites import Site, site_width
from .sketches import SketchSizes

_SAE_NUMBER_BYTES = 4  # SAEs are computed in float32 whatever the model's type
# Active tokens of a kept window, on average: 4.3 in the toy's top and 2.2 in its sample.
_ACTIVE_TOKENS = 4
# A table of kept rows grows by a quarter beyond need and is ranked when half as much again has
# come in, from one copy into another.
_ROW_HEADROOM = 1.25 * 1.5 * 2


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that something takes, and how they were worked out.

    Attributes:
        n_copies: how often the same lies there; counted in `n_bytes`.
    """

    name: str
    n_bytes: int
    arithmetic: str
    n_copies: int = 1


def count_parameters(config: Any, n_layers: int) -> int:
    """Parameters of a Gemma 2's or 3's embedding, first layers and final norm.

    The vocabulary head adds none: it is the embedding.

    Args:
        config: of a `Gemma2Model` or a `Gemma3TextModel`.
        n_layers: how many of its layers there are.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    # Queries and output, keys and values, the MLP's three matrices, four norms.
    layer = 2 * hidden * heads + 2 * hidden * groups + 3 * hidden * inner + 4 * hidden
    if config.model_type == "gemma3_text":
        layer += 2 * config.head_dim  # norms of a head's queries and keys
    return int(config.vocab_size * hidden + n_layers * layer + hidden)


def model_need(config: Any, n_layers: int, number_bytes: int) -> Need:
    """The model, as deep as it is loaded."""
    n = count_parameters(config, n_layers)
    arithmetic = (
        f"{n_layers} of {config.num_hidden_layers} layers and the embedding: "
        f"{n:,} parameters × {number_bytes} bytes"
    )
    return Need("weights", n * number_bytes, arithmetic)


def sae_need(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Need:
    """An SAE in memory, from the shapes of its arrays."""
    n = sum(map(math.prod, shapes.values()))
    d_in, width = encoder_shape(shapes)
    arithmetic = f"{width:,} features of {d_in:,}: {n:,} numbers × {_SAE_NUMBER_BYTES} bytes"
    return Need(name, n * _SAE_NUMBER_BYTES, arithmetic)


def encoder_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Length of the vectors that an SAE reads, and its number of features.

    Raises:
        KeyError: there is no encoder among the arrays.
        ValueError: it is no matrix.
    """
    d_in, width = {name.lower(): shape for name, shape in shapes.items()}["w_enc"]
    return d_in, width


def batch_need(
    config: Any,
    sites: Iterable[Site],
    *,
    n_at_once: int,
    batch_tokens: int,
    number_bytes: int,
    sequence_tokens: int,
    has_square_scores: bool,
) -> Need:
    """What the batches in work hold.

    Args:
        config: the model's configuration.
        sites: what is read.
        n_at_once: batches side by side.
        batch_tokens: in each.
        number_bytes: of the model's type.
        sequence_tokens: the longest sequence.
        has_square_scores: attention holds the whole square of scores (on a GPU).
    """
    hidden = 4 * config.hidden_size + 3 * config.intermediate_size
    read = 2 * sum(site_width(site, config) for site in set(sites))
    n_bytes = n_at_once * batch_tokens * (hidden + read) * number_bytes
    arithmetic = (
        f"{n_at_once} × {batch_tokens:,} tokens × ({hidden:,} numbers in a layer + {read:,} at "
        f"the sites) × {number_bytes} bytes"
    )
    if has_square_scores:
        # Scores and weights in the model's type, and the softmax between them in float32.
        each = 2 * number_bytes + 4
        seen = min(sequence_tokens, batch_tokens)
        scores = n_at_once * batch_tokens * seen * config.num_attention_heads
        n_bytes += scores * each
        arithmetic += f" + {scores:,} attention scores × {each} bytes"
    return Need("batches", n_bytes, arithmetic)


def sketch_need(name: str, width: int, sizes: SketchSizes) -> Need:
    """What all features of an SAE remember, at most, while text is read."""
    rows = _kept_rows(sizes)
    row = _row_bytes()
    counts = width * sum(column.nbytes for column in FeatureCounts.zeros(1, len(SPLITS)))
    n_bytes = int(width * rows * row * _ROW_HEADROOM) + counts
    arithmetic = (
        f"{width:,} features × {rows} kept rows × {row} bytes × {_ROW_HEADROOM:g} (room to rank) "
        f"+ {counts:,} bytes of counts"
    )
    return Need(name, n_bytes, arithmetic)


def context_need(name: str, width: int, sizes: SketchSizes, n_copies: int) -> Need:
    """The kept windows of an SAE's features on disk, at most.

    Args:
        name: of the line.
        width: features of the SAE.
        sizes: how many windows are kept.
        n_copies: how often they lie there (databases and parts).
    """
    rows, row = _kept_rows(sizes), _row_bytes()
    arithmetic = f"{width:,} features × {rows} kept rows × {row} bytes × {n_copies} copies"
    return Need(name, width * rows * row * n_copies, arithmetic, n_copies)


def background_need(
    name: str, l0: float, sizes: SketchSizes, window_tokens: int, n_copies: int
) -> Need:
    """What fires in the windows of the background on disk.

    Args:
        name: of the line.
        l0: features that fire on a token.
        sizes: how many windows the background has.
        window_tokens: in a window.
        n_copies: how often they lie there (databases, parts, temporary files).
    """
    windows = int(sizes.kept_background.sum())
    # A position, an activation, and at worst a feature and a length for each firing.
    each = 11
    n_bytes = int(windows * window_tokens * l0 * each * n_copies)
    arithmetic = (
        f"{windows:,} windows × {window_tokens} tokens × {l0:g} features a token × {each} bytes "
        f"× {n_copies} copies"
    )
    return Need(name, n_bytes, arithmetic, n_copies)


def _kept_rows(sizes: SketchSizes) -> int:
    return int(sizes.kept_top.sum() + sizes.kept_sample.sum())


def _row_bytes() -> int:
    """Bytes of a kept window with its activations."""
    room = KeptWindows.with_room(1, _ACTIVE_TOKENS)
    return int(sum(np.asarray(column).nbytes for column in room))
