"""What a computation needs of a device's memory, for the message where it has too little."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ..store.errors import ModelError

if TYPE_CHECKING:
    from .models import SubjectModel
    from .saes import Sae


def out_of_memory(model: SubjectModel, saes: Iterable[Sae], n_tokens: int) -> ModelError:
    """The error where not even one sequence fits, with the sum of what would have to.

    Args:
        model: as loaded.
        saes: as loaded.
        n_tokens: of the sequence, BOS included.
    """
    weights = sum(weight.nbytes for weight in model.network.parameters())
    of_saes = sum(sae.n_bytes for sae in saes)
    one = sequence_bytes(model, n_tokens)
    total = "unknown"
    if model.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(model.device)
        total = f"{_gib(whole)}, of which {_gib(free)} are free"
    return ModelError(
        "The device's memory is too small for one sequence.",
        where=str(model.device),
        found=total,
        expected=f"{_gib(weights)} for the model's layers, {_gib(of_saes)} for the SAEs and about "
        f"{_gib(one)} for a sequence of {n_tokens:,} tokens: {_gib(weights + of_saes + one)}",
        mend="collect fewer or narrower SAEs at once, set a smaller [collect] sequence_tokens, "
        "or end what else uses the device",
    )


def sequence_bytes(model: SubjectModel, n_tokens: int) -> int:
    """An estimate of what one layer holds at once for a sequence: scores and the MLP's middle."""
    config = model.config
    scores = 3 * config.num_attention_heads * n_tokens * n_tokens
    middle = 3 * config.intermediate_size * n_tokens
    stream = 8 * config.hidden_size * n_tokens
    return int((max(scores, middle) + stream) * model.network.dtype.itemsize)


def _gib(n: int) -> str:
    return f"{n / 2**30:.2f} GiB"
