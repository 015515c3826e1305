"""Which contexts explainers are shown, and activations as integers from 0 to 10."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.label.chosen_contexts import choose_contexts, scale_activations
from scopenote.store.records import FeatureContexts, Stratum

from .planted_feature import make_contexts, make_stratum

NOTHING = make_stratum([])
SILENT = make_stratum([[9, 9]] * 5, first_id=900)


def stratum_of(peaks: Sequence[float], first_id: int) -> Stratum:
    """A window for each peak, with a second token at half of it."""
    return make_stratum([[1, 2, 3]] * len(peaks), [[p / 2, p, 0] for p in peaks], first_id=first_id)


def contexts_of(top: Sequence[float], sample: Sequence[float]) -> FeatureContexts:
    return make_contexts(stratum_of(sample, 100), SILENT, stratum_of(top, 0))


TOP = [40.0 - rank for rank in range(20)]
SAMPLE = [20.0 - rank / 2 for rank in range(40)]


def test_half_are_the_top_windows_and_half_from_the_sample_in_turn() -> None:
    chosen = choose_contexts(contexts_of(TOP, SAMPLE), 20)
    assert chosen.window_ids[::2] == tuple(range(10))
    assert all(window_id >= 100 for window_id in chosen.window_ids[1::2])


@pytest.mark.parametrize("n", [2, 8, 13, 20, 30])
def test_the_sample_s_share_has_one_window_of_each_quantile(n: int) -> None:
    chosen = choose_contexts(contexts_of(TOP, SAMPLE), n)
    ranks = sorted(window_id - 100 for window_id in chosen.window_ids if window_id >= 100)
    m = n // 2
    assert len(ranks) == m
    for group, rank in enumerate(ranks):
        assert group * 40 / m <= rank < (group + 1) * 40 / m


@pytest.mark.parametrize("n", range(2, 34))
def test_whoever_shows_only_the_beginning_shows_all_strengths(n: int) -> None:
    chosen = choose_contexts(contexts_of(TOP, SAMPLE), n)
    ranks = [window_id - 100 for window_id in chosen.window_ids if window_id >= 100]
    for k in range(1, len(ranks) + 1):
        ends = [0, *sorted(ranks[:k]), 39]
        assert max(b - a for a, b in pairwise(ends)) <= 2 * 40 / k


def test_the_first_context_is_the_strongest() -> None:
    """So that dropping contexts from the end leaves the scale as it is."""
    for contexts in (contexts_of(TOP, SAMPLE), contexts_of([], SAMPLE), contexts_of(TOP, [])):
        assert choose_contexts(contexts, 7).strengths[0].max() == 10


@pytest.mark.parametrize(
    ("n_top", "n_sample", "shown"),
    [(20, 40, (5, 5)), (2, 40, (2, 8)), (20, 3, (7, 3)), (2, 3, (2, 3)), (0, 40, (0, 10)),
     (20, 0, (10, 0)), (0, 0, (0, 0))],
)  # fmt: skip
def test_where_one_kind_has_too_few_the_other_has_more(
    n_top: int, n_sample: int, shown: tuple[int, int]
) -> None:
    chosen = choose_contexts(contexts_of(TOP[:n_top], SAMPLE[:n_sample]), 10)
    assert sum(window_id < 100 for window_id in chosen.window_ids) == shown[0]
    assert sum(window_id >= 100 for window_id in chosen.window_ids) == shown[1]


def test_no_text_is_shown_twice() -> None:
    """A top window may be in the sample too, as itself or as a copy at another place."""
    top, sample = stratum_of(TOP[:4], 0), stratum_of([40.0, 39.0, 5.0, 4.0, 3.0], 0)
    as_copies = sample.windows.window_id + np.uint64(100)
    sample.windows.window_id[:] = as_copies
    chosen = choose_contexts(make_contexts(sample, SILENT, top), 20)
    assert sorted(chosen.window_ids) == [0, 1, 2, 3, 104]


def test_of_a_text_in_both_kinds_only_the_sampled_one_is_shown_where_tops_fill_up() -> None:
    top, sample = stratum_of(TOP[:8], 0), stratum_of(TOP[:8], 0)
    last = sample.windows.take(np.array([7]))
    last.window_id[:] = 107
    contexts = make_contexts(Stratum(last, sample.activations[7:], 1), SILENT, top)
    assert sorted(choose_contexts(contexts, 10).window_ids) == [0, 1, 2, 3, 4, 5, 6, 107]


def test_the_strongest_come_first_whatever_windows_are_called() -> None:
    contexts = contexts_of([2.0, 5.0, 4.0, 3.0], [1.0, 3.0, 2.0])
    assert choose_contexts(contexts, 5).window_ids == (1, 101, 2, 100, 3)


def test_windows_in_which_the_feature_is_off_are_not_shown() -> None:
    chosen = choose_contexts(contexts_of([3.0, 0.0], [2.0, 0.0, 0.0]), 10)
    assert chosen.window_ids == (0, 100)
    assert len(choose_contexts(make_contexts(NOTHING, SILENT), 10)) == 0


@given(st.integers(0, 99), st.integers(1, 25))
def test_the_choice_is_the_same_in_whatever_order_the_windows_come(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    peaks = rng.integers(1, 6, 12).astype(float)  # with ties
    contexts = contexts_of(peaks[:5].tolist(), peaks[5:].tolist())

    def shuffled(stratum: Stratum) -> Stratum:
        rows = rng.permutation(len(stratum))
        return Stratum(stratum.windows.take(rows), stratum.activations[rows], len(rows))

    other = make_contexts(shuffled(contexts.active), SILENT, shuffled(contexts.top))
    one, two = choose_contexts(contexts, n), choose_contexts(other, n)
    assert one.window_ids == two.window_ids
    assert np.array_equal(one.strengths, two.strengths)


def test_each_row_keeps_its_own_tokens_and_activations() -> None:
    active = make_stratum([[1, 2], [3], [4, 5, 6]], [[0, 5], [2], [8, 0, 1]], first_id=10)
    chosen = choose_contexts(make_contexts(active, SILENT), 10)
    rows = dict(zip(chosen.window_ids, chosen.token_ids.tolist(), strict=True))
    assert rows == {12: [4, 5, 6, -1], 10: [1, 2, -1, -1], 11: [3, -1, -1, -1]}
    strengths = dict(zip(chosen.window_ids, chosen.strengths.tolist(), strict=True))
    assert strengths == {12: [10, 0, 1, 0], 10: [0, 6, 0, 0], 11: [2, 0, 0, 0]}


@given(
    st.lists(
        st.one_of(
            st.floats(-3, 2.0**100, width=32),
            st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 2.0, 3.0]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_strengths_are_those_of_exact_arithmetic(values: list[float]) -> None:
    activations = np.array([values], np.float32)
    exact = [max(Fraction(float(value)), Fraction(0)) for value in activations[0]]
    highest = max(exact)
    slow = [min(10, math.floor(10 * x / highest)) if highest else 0 for x in exact]
    assert scale_activations(activations).tolist() == [slow]


def test_of_no_contexts_there_are_no_strengths() -> None:
    assert scale_activations(np.zeros((0, 4), np.float32)).shape == (0, 4)
