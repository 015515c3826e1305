"""Which features of an SAE write in nearly the same direction: cosines of decoder rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from .saes import Sae
from .strongest import Strongest, blocks_of, join_strongest, stack_rows, strongest

# Of one product of matrices, so that 32 MB of cosines are held at once.
_FEATURES_AT_ONCE, _OTHERS_AT_ONCE = 1024, 8192


@torch.inference_mode()
def nearest_by_cosine(sae: Sae, features: range, k: int = 10) -> Strongest:
    """The k other features whose decoder rows have the highest cosine with each feature's.

    Exact: every pair is looked at, in blocks, in float32. Equal cosines are decided by feature
    number. The cost is that of encoding as many tokens as the SAE has features.

    Returns:
        Rows in the order of `features`, columns feature numbers. A value of -inf stands where
        there is no neighbour: a decoder row of zeros has no direction.
    """
    return stack_rows(
        [
            _nearest_to_block(sae.decoder, block, k)
            for block in blocks_of(features, _FEATURES_AT_ONCE)
        ]
    )


def _nearest_to_block(decoder: Float[torch.Tensor, "F D"], features: range, k: int) -> Strongest:
    found: Strongest | None = None
    own, own_is_zero = _directions(decoder, features)
    for others in blocks_of(range(len(decoder)), _OTHERS_AT_ONCE):
        directions, is_zero = _directions(decoder, others)
        cosines = own @ directions.T
        cosines[own_is_zero] = -torch.inf
        cosines[:, is_zero] = -torch.inf
        both = range(max(features.start, others.start), min(features.stop, others.stop))
        if both:
            number = torch.arange(both.start, both.stop, device=cosines.device)
            cosines[number - features.start, number - others.start] = -torch.inf
        values, columns = strongest(cosines, k)
        here = Strongest(values, columns + others.start)
        found = here if found is None else join_strongest(found, here, k)
    if found is None:
        raise ValueError("an SAE has features")
    return found


def _directions(
    decoder: Float[torch.Tensor, "F D"], features: range
) -> tuple[Float[torch.Tensor, "F D"], torch.Tensor]:
    """Decoder rows of length one, and which rows are zero and have none."""
    rows = decoder[features.start : features.stop].float()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp_min(torch.finfo(torch.float32).tiny), length[:, 0] == 0


def neighbours_table(features: range, nearest: Strongest) -> pa.Table:
    """Rows of a part: feature, rank from 1, neighbour and value, where there is a neighbour."""
    values, neighbours = nearest.values.cpu().numpy(), nearest.columns.cpu().numpy()
    row, place = np.nonzero(np.isfinite(values))
    return pa.table(
        {
            "feature": (row + features.start).astype(np.int32),
            "rank": (place + 1).astype(np.int32),
            "neighbour": neighbours[row, place].astype(np.int32),
            "value": values[row, place].astype(np.float64),
        }
    )
