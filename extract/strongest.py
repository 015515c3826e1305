"""The largest numbers of each row, with ties decided by column.

A library's own `topk` takes any of several equal numbers; a table that is worked out again must
come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int


class Strongest(NamedTuple):
    """The largest numbers of each row, falling; equal ones by rising column."""

    values: Float[torch.Tensor, "R K"]
    columns: Int[torch.Tensor, "R K"]


def strongest(values: Float[torch.Tensor, "R C"], k: int) -> Strongest:
    """The k largest of each row, or all where there are fewer columns."""
    n_columns = values.shape[1]
    # One more than asked for shows whether the last place is tied.
    best, columns = values.topk(min(k + 1, n_columns), dim=1)
    if n_columns > k:
        tied = (best[:, k - 1] == best[:, k]).nonzero()[:, 0]
        best, columns = best[:, :k], columns[:, :k]
        if len(tied):
            order = values[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
            columns = columns.index_copy(0, tied, order)
            best = best.index_copy(0, tied, values[tied].gather(1, order))
    columns, order = columns.sort(dim=1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return Strongest(best, columns.gather(1, order))


def join_strongest(first: Strongest, second: Strongest, k: int) -> Strongest:
    """The k largest of both; every column of the first is smaller than any of the second."""
    best = strongest(torch.cat([first.values, second.values], dim=1), k)
    columns = torch.cat([first.columns, second.columns], dim=1)
    return Strongest(best.values, columns.gather(1, best.columns))


def stack_rows(blocks: Sequence[Strongest]) -> Strongest:
    """The rows of all blocks, one after another."""
    return Strongest(
        torch.cat([block.values for block in blocks]),
        torch.cat([block.columns for block in blocks]),
    )


def blocks_of(whole: range, size: int) -> Iterator[range]:
    """Consecutive stretches of at most `size`."""
    for start in range(whole.start, whole.stop, size):
        yield range(start, min(start + size, whole.stop))
