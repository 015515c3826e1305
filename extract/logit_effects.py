"""What a feature does to the next token's logits by itself: its direction, read out.

A decoder row that is added to the residual stream goes, where no later layer touches it, through
the final norm and the unembedding. It is the logit lens (nostalgebraist 2020) on a direction.
Gemma 2's final RMSNorm divides by a token's root mean square and multiplies by `1 + w`. The gain
is folded into the direction; the division, one positive number at each place in the text, and
the soft cap, which is monotonic, are left out. So the order of the tokens is that of the direct
path, and the numbers are logits per unit of activation where that root mean square is 1.

The logits are not centred over the vocabulary: a soft cap is not indifferent to a constant added
to all of them, and the order within a feature is the same either way.

Left out: what later layers make of the feature.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from .decoder_spaces import residual_directions
from .models import SubjectModel
from .saes import Sae
from .strongest import Strongest, blocks_of, join_strongest, stack_rows, strongest

# Of one product of matrices, so that 32 MB of logits are held at once.
_FEATURES_AT_ONCE, _TOKENS_AT_ONCE = 1024, 8192


class LogitEffects(NamedTuple):
    """The tokens that each feature raises and lowers most; a row a feature, columns token ids.

    Attributes:
        raised: falling, with their logits.
        lowered: the lowest first, with their logits *negated*.
    """

    raised: Strongest
    lowered: Strongest


def unembedding(model: SubjectModel) -> Float[torch.Tensor, "V D"] | None:
    """The matrix that makes logits of the normed final residual stream; None if not loaded.

    Gemma 2 ties it to the embedding. A model that unties it keeps it in its vocabulary head,
    which is never loaded here.
    """
    if not model.config.tie_word_embeddings:
        return None
    weight: torch.Tensor = model.network.embed_tokens.weight.detach()
    return weight


def output_directions(model: SubjectModel, sae: Sae, features: range) -> Float[torch.Tensor, "F D"]:
    """What a unit of each feature adds to the residual stream, times the final norm's gain.

    What SAEs of the residual stream, of the MLP and transcoders reconstruct *is* added to the
    stream, that of the embedding after it is scaled by √d. Attention's is not: the concatenated
    heads pass through `o_proj` and then `post_attention_layernorm`. This norm is taken as the
    final one is, with its gain folded in and its division left out. It divides by the root mean
    square of what *all* heads write at a token: a positive number that does not depend on the
    output token, so that the order of the tokens is again that of the direct path. But the
    logits of an attention SAE are thereby in a unit of their own, and cannot be compared with
    those of another site.
    """
    rows = residual_directions(sae, features, model)
    directions: torch.Tensor = rows * (1 + model.network.norm.weight.detach().float())
    return directions


@torch.inference_mode()
def try_logit_effects(model: SubjectModel, sae: Sae) -> int:
    """Works out as much as is held at once, for whoever wants to know how long that takes.

    Returns:
        How many multiply-adds that were; 0 where the unembedding is not loaded.
    """
    matrix = unembedding(model)
    if matrix is None:
        return 0
    features = range(min(sae.width, _FEATURES_AT_ONCE))
    some = matrix[:_TOKENS_AT_ONCE]
    effects = _effects_of_block(output_directions(model, sae, features), some, 10)
    # A GPU is not done before its result has arrived.
    effects.raised.values.cpu()
    return len(features) * some.numel()


@torch.inference_mode()
def logit_effects(
    model: SubjectModel, sae: Sae, features: range, k: int = 10
) -> LogitEffects | None:
    """The k output tokens that each of these features raises most, and the k it lowers most.

    Worked out in float32, in blocks of features and of the vocabulary: all at once would take a
    megabyte a feature at 256,000 tokens. Equal logits are decided by token id. The cost is that
    of encoding as many tokens as the vocabulary has.

    Returns:
        None where the unembedding is not loaded.
    """
    matrix = unembedding(model)
    if matrix is None:
        return None
    blocks = [
        _effects_of_block(output_directions(model, sae, block), matrix, k)
        for block in blocks_of(features, _FEATURES_AT_ONCE)
    ]
    return LogitEffects(
        stack_rows([block.raised for block in blocks]),
        stack_rows([block.lowered for block in blocks]),
    )


def _effects_of_block(
    directions: Float[torch.Tensor, "F D"], matrix: Float[torch.Tensor, "V D"], k: int
) -> LogitEffects:
    found: LogitEffects | None = None
    for tokens in blocks_of(range(len(matrix)), _TOKENS_AT_ONCE):
        logits = directions @ matrix[tokens.start : tokens.stop].float().T
        here = LogitEffects(
            _strongest_from(logits, tokens.start, k), _strongest_from(-logits, tokens.start, k)
        )
        found = (
            here
            if found is None
            else LogitEffects(
                join_strongest(found.raised, here.raised, k),
                join_strongest(found.lowered, here.lowered, k),
            )
        )
    if found is None:
        raise ValueError("a vocabulary has tokens")
    return found


def _strongest_from(logits: Float[torch.Tensor, "F V"], first_token: int, k: int) -> Strongest:
    values, columns = strongest(logits, k)
    return Strongest(values, columns + first_token)


def effects_table(features: range, effects: LogitEffects | None) -> pa.Table:
    """Rows of a part, one a feature: token ids and logits, raised and lowered, as lists.

    The lists are NULL where the unembedding was not loaded.
    """
    columns = {"feature": pa.array(features, pa.int32())}
    if effects is None:
        for name in ("positive", "negative"):
            columns[f"token_ids_{name}"] = pa.nulls(len(features), pa.list_(pa.int32()))
            columns[f"logits_{name}"] = pa.nulls(len(features), pa.list_(pa.float32()))
    else:
        columns["token_ids_positive"] = _as_lists(effects.raised.columns.int())
        columns["logits_positive"] = _as_lists(effects.raised.values)
        columns["token_ids_negative"] = _as_lists(effects.lowered.columns.int())
        columns["logits_negative"] = _as_lists(-effects.lowered.values)
    return pa.table(columns)


def _as_lists(rows: torch.Tensor) -> pa.ListArray:
    n_rows, length = rows.shape
    offsets = np.arange(0, (n_rows + 1) * length, length, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, rows.cpu().numpy().ravel())
