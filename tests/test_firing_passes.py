"""The compiled passes against their slow twins, written with dictionaries and NumPy."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.extract.firing_passes import (
    ENTERS_SAMPLE,
    ENTERS_TOP,
    HISTOGRAM_EDGES,
    BatchWindows,
    EntryLevels,
    FeatureCounts,
    count_and_select,
    find_above,
    gather_by_window,
)

N_SPLITS, N_FEATURES = 3, 5


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[np.ndarray, ...], BatchWindows]:
    """Firings by feature, then token, of windows of up to four tokens."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = rng.integers(1, 5, draw(st.integers(1, 6)))
    window_of_token = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    position = np.concatenate([np.arange(n, dtype=np.uint8) for n in lengths])
    windows = BatchWindows(
        split=rng.integers(0, N_SPLITS, len(lengths)).astype(np.int8),
        token_hash=rng.integers(0, 50, len(lengths)).astype(np.uint64),
        occurrence=np.arange(len(lengths), dtype=np.int64),
        in_pool=rng.random(len(lengths)) < 0.5,
        window_of_token=window_of_token,
        position=position,
    )
    fires = rng.random((N_FEATURES, len(window_of_token))) < draw(st.sampled_from([0, 0.3, 0.9]))
    feature, token = np.nonzero(fires)
    value = np.exp(rng.normal(0, 3, len(feature))).astype(np.float32)
    return (feature.astype(np.int32), token.astype(np.int32), value), windows


def list_groups(
    firings: tuple[np.ndarray, ...], windows: BatchWindows
) -> dict[tuple[int, int], list[int]]:
    """Places of the firings of each feature in each window."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, (feature, token) in enumerate(zip(*firings[:2], strict=True)):
        groups[int(feature), int(windows.window_of_token[token])].append(place)
    return dict(groups)


@settings(deadline=None, max_examples=60)
@given(drawn=batches(), seed=st.integers(0, 1000))
def test_counting_and_selecting_is_what_a_dictionary_gives(
    drawn: tuple[tuple[np.ndarray, ...], BatchWindows], seed: int
) -> None:
    firings, windows = drawn
    rng = np.random.default_rng(seed)
    n_slots = N_FEATURES * N_SPLITS
    levels = EntryLevels(
        rng.choice([0, 0.5, 2, 1e9], n_slots).astype(np.float32),
        rng.integers(0, 50, n_slots).astype(np.uint64),
    )
    counts = FeatureCounts.zeros(N_FEATURES, N_SPLITS)
    found = count_and_select(*firings, windows, N_SPLITS, levels, counts)

    value = firings[2]
    expected = FeatureCounts.zeros(N_FEATURES, N_SPLITS)
    entering = []
    for (feature, window), places in list_groups(firings, windows).items():
        slot = feature * N_SPLITS + int(windows.split[window])
        peak = value[places].max()
        expected.n_active_windows[slot] += 1
        expected.n_active[slot] += len(places)
        expected.max_activation[feature] = max(expected.max_activation[feature], peak)
        for v in value[places]:
            bin_ = np.searchsorted(HISTOGRAM_EDGES, v, side="right") - 1
            expected.histogram[feature, max(bin_, 0)] += 1
        in_top = bool(peak >= levels.least_peak[slot])
        in_sample = bool(windows.token_hash[window] <= levels.largest_hash[slot])
        if in_top or in_sample:
            enters = ENTERS_TOP * in_top + ENTERS_SAMPLE * in_sample
            entering.append((slot, window, places[0], len(places), peak, enters))
    for name in ("n_active_windows", "n_active", "histogram", "max_activation"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(expected, name))
    assert list(zip(*(column.tolist() for column in found), strict=True)) == entering


@settings(deadline=None, max_examples=60)
@given(drawn=batches())
def test_sums_are_those_of_fractions_to_the_rounding_of_one_batch(
    drawn: tuple[tuple[np.ndarray, ...], BatchWindows],
) -> None:
    firings, windows = drawn
    n_slots = N_FEATURES * N_SPLITS
    nothing = EntryLevels(np.full(n_slots, np.inf, np.float32), np.zeros(n_slots, np.uint64))
    counts = FeatureCounts.zeros(N_FEATURES, N_SPLITS)
    rounds = 3
    for _ in range(rounds):
        count_and_select(*firings, windows, N_SPLITS, nothing, counts)
    sums, sums_sq = defaultdict(Fraction), defaultdict(Fraction)
    for (feature, window), places in list_groups(firings, windows).items():
        slot = feature * N_SPLITS + int(windows.split[window])
        sums[slot] += sum(Fraction(float(firings[2][p])) for p in places)
        sums_sq[slot] += sum(Fraction(float(firings[2][p])) ** 2 for p in places)
    for found, exact in ((counts.sums, sums), (counts.sums_sq, sums_sq)):
        assert found.dtype == np.int64
        assert ((found[:, 1] >= 0) & (found[:, 1] < 2**32)).all()
        for slot in range(n_slots):
            total = int(found[slot, 0]) + Fraction(int(found[slot, 1]), 2**32)
            assert float(total) == pytest.approx(float(rounds * exact[slot]), rel=1e-12, abs=1e-8)


@settings(deadline=None, max_examples=60)
@given(drawn=batches())
def test_gathering_by_window_is_what_a_dictionary_gives(
    drawn: tuple[tuple[np.ndarray, ...], BatchWindows],
) -> None:
    firings, windows = drawn
    wanted = np.flatnonzero(windows.in_pool)
    place = np.full(len(windows.in_pool), -1, np.int32)
    place[wanted] = np.arange(len(wanted))
    found = gather_by_window(*firings, windows, place, len(wanted))
    groups = list_groups(firings, windows)
    for number, window in enumerate(wanted):
        rows = slice(found.n_groups[number], found.n_groups[number + 1])
        begin = found.n_firings[number]
        expected = sorted((f, places) for (f, w), places in groups.items() if w == window)
        assert found.feature[rows].tolist() == [feature for feature, _ in expected]
        assert found.length[rows].tolist() == [len(places) for _, places in expected]
        flat = [p for _, places in expected for p in places]
        fired = slice(begin, begin + len(flat))
        assert found.position[fired].tolist() == windows.position[firings[1][flat]].tolist()
        assert found.activation[fired].tolist() == firings[2][flat].tolist()
    assert len(found.feature) == found.n_groups[-1]
    assert len(found.position) == found.n_firings[-1]


def test_what_equals_its_threshold_does_not_fire() -> None:
    pre = np.array([[0.5, 1.0, 1.5], [2.0, 2.0, np.nan], [0.0, 0.1, -1.0]], np.float32)
    threshold = np.array([1.0, 2.0, 0.0], np.float32)
    found = np.empty(9, np.int32), np.empty(9, np.int32), np.empty(9, np.float32)
    n = find_above(pre, threshold, 1, found)
    assert [(int(f), int(t)) for f, t in zip(found[0][:n], found[1][:n], strict=True)] == [
        (1, 2),
        (3, 1),
    ]
    assert found[2][:n].tolist() == [np.float32(1.5), np.float32(0.1)]
