"""Firings of the background's windows: copies folded, rows reordered, bytes and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.store.background import (
    WindowFirings,
    background_rows,
    fold_background,
    fold_copies,
)
from scopenote.store.feature_order import by_feature


@st.composite
def windows(draw: st.DrawFn, most: int = 8) -> list[WindowFirings]:
    """Windows at different places, with firings that tell where they come from."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    places = rng.permutation(20)[: draw(st.integers(0, most))]
    found = []
    for place in places.tolist():
        feature = np.flatnonzero(rng.random(draw(st.sampled_from([3, 700]))) < 0.5)
        length = rng.integers(1, 4, len(feature)).astype(np.uint16)
        found.append(
            WindowFirings(
                place,
                feature.astype(np.int32),
                length,
                rng.integers(0, 64, length.sum()).astype(np.uint8),
                (place + rng.random(length.sum())).astype(np.float32),
            )
        )
    return found


Rows = dict[int, tuple[int, list[int], list[float]]]


def by_hand(folded: list[WindowFirings]) -> Rows:
    """Of each feature: occurrence, positions and activations; a feature may stand only once."""
    rows: Rows = {}
    for window in folded:
        ends = np.cumsum(window.length)
        for feature, end, n in zip(window.feature.tolist(), ends, window.length, strict=True):
            assert feature not in rows
            fired = slice(int(end) - int(n), int(end))
            rows[feature] = (
                window.occurrence,
                window.position[fired].tolist(),
                window.activation[fired].tolist(),
            )
    return rows


@settings(deadline=None, max_examples=50)
@given(copies=windows(), data=st.data())
def test_a_feature_keeps_the_earliest_copy_in_which_it_fires_in_any_grouping(
    copies: list[WindowFirings], data: st.DataObject
) -> None:
    expected: Rows = {}
    for copy in sorted(copies, key=lambda each: -each.occurrence):
        expected |= by_hand([copy])
    cut = data.draw(st.integers(0, len(copies)))
    once = fold_copies(copies)
    twice = fold_copies([*fold_copies(copies[cut:]), *fold_copies(copies[:cut])])
    assert by_hand(once) == by_hand(twice) == expected
    assert all(len(window.feature) for window in once)


@settings(deadline=None, max_examples=50)
@given(groups=st.lists(windows(4), max_size=4))
def test_folding_rows_of_parts_folds_each_window_by_itself(
    groups: list[list[WindowFirings]],
) -> None:
    rows = [(number % 3, number, each) for number, group in enumerate(groups) for each in group]
    rows.sort(key=lambda row: row[:2])
    expected = background_rows(
        (number % 3, number, each)
        for number in sorted(range(len(groups)), key=lambda n: (n % 3, n))
        for each in fold_copies(groups[number])
    ).read_all()
    assert fold_background(background_rows(rows).read_all()).equals(expected)


@settings(deadline=None, max_examples=50)
@given(kept=windows())
def test_rows_by_feature_hold_what_rows_by_window_held(kept: list[WindowFirings]) -> None:
    table = background_rows((0, number, each) for number, each in enumerate(kept)).read_all()
    names = pa.array([1000 + number for number in range(len(kept))], pa.uint64())
    found = by_feature(table.append_column("window_id", names)).to_pylist()
    expected = sorted(
        (feature, 1000 + number, *row[1:])
        for number, each in enumerate(kept)
        for feature, row in by_hand([each]).items()
    )
    assert [tuple(row.values()) for row in found] == expected
