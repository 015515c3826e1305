"""What windows stand for that were rated because a cheap screen fired in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.correlation import Undefined
from scopenote.evaluate.screening import (
    NO_OTHER_RATED,
    NO_SUSPECT_RATED,
    FirstPhase,
    silent_weights,
)


def screened(*fires: int, copies: tuple[float, ...] | None = None) -> FirstPhase:
    weight = np.array(copies or [1.0] * len(fires), np.float64)
    return FirstPhase(np.arange(len(fires)), weight, np.array(fires, bool))


def test_rated_suspects_stand_for_the_share_that_suspects_were_of_the_screened() -> None:
    first = screened(1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    found = silent_weights(np.ones(3), np.array([True, False, False]), first, 1000.0)
    assert found == pytest.approx([200, 400, 400])


def test_copies_count_in_both_phases() -> None:
    first = screened(1, 0, 0, copies=(2, 3, 5))
    found = silent_weights(np.array([2.0, 3, 5]), np.array([True, False, False]), first, 100.0)
    assert found == pytest.approx([20, 30, 50])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1))
def test_where_all_screened_windows_are_rated_the_screen_does_not_matter(
    windows: list[tuple[bool, int]],
) -> None:
    fires, copies = (np.array(each) for each in zip(*windows, strict=True))
    first = FirstPhase(np.arange(len(fires)), copies.astype(np.float64), fires)
    found = silent_weights(first.weight, fires, first, 500.0)
    assert found == pytest.approx(first.weight * 500 / first.weight.sum())


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 40), st.integers(0, 40))
def test_the_weights_add_up_to_the_population(
    n_suspects: int, n_others: int, more_suspects: int, more_others: int
) -> None:
    first = screened(*[1] * (n_suspects + more_suspects), *[0] * (n_others + more_others))
    is_suspect = np.arange(n_suspects + n_others) < n_suspects
    found = silent_weights(np.ones(len(is_suspect)), is_suspect, first, 12345.0)
    assert isinstance(found, np.ndarray)
    assert found.sum() == pytest.approx(12345)
    assert (found > 0).all()


def test_suspects_of_which_none_was_rated_leave_the_estimate_undefined() -> None:
    found = silent_weights(np.ones(2), np.zeros(2, bool), screened(1, 0, 0), 10.0)
    assert found == Undefined(NO_SUSPECT_RATED)


def test_others_of_which_none_was_rated_leave_the_estimate_undefined() -> None:
    found = silent_weights(np.ones(1), np.ones(1, bool), screened(1, 0, 0), 10.0)
    assert found == Undefined(NO_OTHER_RATED)


@pytest.mark.parametrize("fires", [False, True])
def test_a_kind_that_was_not_found_need_not_be_rated(fires: bool) -> None:
    found = silent_weights(np.ones(2), np.full(2, fires), screened(*[fires] * 5), 10.0)
    assert found == pytest.approx([5, 5])


@pytest.mark.parametrize("fires", [False, True])
def test_more_windows_rated_than_screened_are_refused(fires: bool) -> None:
    with pytest.raises(ValueError, match="only 0 screened"):
        silent_weights(np.ones(2), np.full(2, fires), screened(*[not fires] * 5), 10.0)
