"""Features on a text of one's own, token by token: what collecting would have recorded there.

It is cut, fed and encoded by the same steps as a document of a corpus: a long text becomes several
sequences, each after a BOS, and special tokens are fed but never active. Nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32

from ..store.errors import UserMistake
from ..store.splits import document_id
from .activations import find_firings
from .corpus import Document
from .models import SubjectModel, read_vectors, token_texts
from .saes import Sae
from .windows import (
    Chunk,
    SequenceBatch,
    TokenizedChunk,
    WindowShape,
    batch_sequences,
    tokenize_chunk,
)


@dataclass(frozen=True, slots=True)
class OwnText:
    """A text as the model saw it, and what features did on it.

    Attributes:
        tokens: each token's text, as `pieces` has it; BOS is none of them.
        activations: of each feature asked for, a row a feature; 0 where it is off.
        n_sequences: into how many sequences the text was cut; the model saw none before another.
    """

    tokens: tuple[str, ...]
    activations: Float32[np.ndarray, "F T"]
    n_sequences: int


def read_own_text(
    model: SubjectModel,
    sae: Sae,
    features: Sequence[int],
    text: str,
    shape: WindowShape,
    is_chat: bool = False,
) -> OwnText:
    """The activations of these features on a text.

    They are those that collecting gives for a document of this text, to rounding, which depends
    on what stands beside a text in a batch.

    Args:
        model: as deep as the SAE's site, or deeper.
        sae: on the model's device.
        features: by number.
        text: any.
        shape: as the SAE's features were collected with.
        is_chat: special tokens in the text are what they spell, as in a corpus of conversations.

    Raises:
        UserMistake: the text has no token.
    """
    chunk = tokenize_own_text(model.tokenizer, model.name, text, shape, is_chat)
    found = np.zeros((len(features), chunk.n_tokens), dtype=np.float32)
    tokenizer = model.tokenizer
    batches = batch_sequences(
        chunk,
        tokenizer.bos_token_id,
        tokenizer.pad_token_id or 0,
        frozenset(tokenizer.all_special_ids),
        # A row at a time, whatever its length.
        max_tokens=1,
    )
    for batch in batches:
        x = read_vectors(model, batch, [sae.site])[sae.site]
        with torch.inference_mode():
            values = activations_of(sae, x, features).cpu().numpy()
        if batch.is_special is not None:
            values[:, batch.is_special] = 0
        found[:, _places_in_text(chunk, batch)] = values
    return OwnText(
        tokens=tuple(token_texts(tokenizer, chunk.tokens.tolist())),
        activations=found,
        n_sequences=len(chunk.sequence_start),
    )


def tokenize_own_text(
    tokenizer: Any, name: str, text: str, shape: WindowShape, is_chat: bool = False
) -> TokenizedChunk:
    """The text as a corpus of this one document, cut as it would be.

    Raises:
        UserMistake: it has no token.
    """
    document = Document(text, document_id(text), is_chat)
    chunk = tokenize_chunk(Chunk(0, (document,)), tokenizer, name, shape)
    if not chunk.n_tokens:
        raise UserMistake("The text is empty.", expected="a few words")
    return chunk


def activations_of(
    sae: Sae, x: Float[torch.Tensor, "T D"], features: Sequence[int]
) -> Float[torch.Tensor, "F T"]:
    """Of a few features, at the cost of a few, unless all of them decide which ones fire."""
    if sae.k is not None:
        return _among_the_largest(sae, x, features)
    rows = torch.tensor(list(features), device=x.device)
    x_t = x.to(sae.encoder.dtype).T
    pre = torch.addmm(sae.encoder_bias[rows, None], sae.encoder[rows], x_t)
    return torch.where(pre > sae.threshold[rows, None], pre, 0.0).float()


def _among_the_largest(
    sae: Sae, x: Float[torch.Tensor, "T D"], features: Sequence[int]
) -> Float[torch.Tensor, "F T"]:
    firings = find_firings(sae, x)
    values = np.zeros((len(features), len(x)), dtype=np.float32)
    for row, feature in enumerate(features):
        of_feature = firings.where(firings.feature == feature)
        values[row, of_feature.token] = of_feature.value
    return torch.from_numpy(values)


def _places_in_text(chunk: TokenizedChunk, batch: SequenceBatch) -> Int32[np.ndarray, " T"]:
    """Where in the text each of the batch's tokens stands: rows do not keep the text's order."""
    places: np.ndarray = chunk.window_start[batch.windows][batch.window_of_token] + batch.position
    return places
