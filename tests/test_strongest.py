"""The largest numbers of a row, against sorting it whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from scopenote.extract.strongest import Strongest, blocks_of, join_strongest, stack_rows, strongest

# Few numbers, so that ties abound, also at the last place.
rows = st.integers(1, 12).flatmap(
    lambda n: st.lists(
        st.lists(st.integers(-2, 2).map(float), min_size=n, max_size=n), min_size=1, max_size=5
    )
)


def sorted_whole(rows: list[list[float]], k: int) -> list[list[tuple[float, int]]]:
    places = [sorted(range(len(row)), key=lambda at, row=row: (-row[at], at))[:k] for row in rows]
    return [[(row[at], at) for at in of] for row, of in zip(rows, places, strict=True)]


def as_pairs(found: Strongest) -> list[list[tuple[float, int]]]:
    return [
        list(zip(values.tolist(), columns.tolist(), strict=True))
        for values, columns in zip(found.values, found.columns, strict=True)
    ]


@given(rows=rows, k=st.integers(1, 6))
def test_they_are_those_of_a_stable_sort(rows: list[list[float]], k: int) -> None:
    assert as_pairs(strongest(torch.tensor(rows), k)) == sorted_whole(rows, k)


@given(rows=rows, k=st.integers(1, 6), size=st.integers(1, 5))
def test_block_by_block_they_are_the_same(rows: list[list[float]], k: int, size: int) -> None:
    whole, found = torch.tensor(rows), None
    for block in blocks_of(range(whole.shape[1]), size):
        here = strongest(whole[:, block.start : block.stop], k)
        here = here._replace(columns=here.columns + block.start)
        found = here if found is None else join_strongest(found, here, k)
    assert as_pairs(found) == sorted_whole(rows, k)


def test_rows_are_stacked_in_order() -> None:
    blocks = [strongest(torch.tensor([[1.0, 2.0]]), 1), strongest(torch.tensor([[4.0, 3.0]]), 1)]
    assert as_pairs(stack_rows(blocks)) == [[(2.0, 1)], [(4.0, 0)]]


def test_blocks_cover_a_range_that_begins_anywhere() -> None:
    assert list(blocks_of(range(3, 10), 4)) == [range(3, 7), range(7, 10)]
