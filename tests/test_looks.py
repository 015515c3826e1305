"""When scoring stops early, and at what level it then says how far it is to be trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.intervals import Interval
from scopenote.evaluate.looks import (
    ABOVE_THRESHOLD,
    BELOW_THRESHOLD,
    LAST_LOOK,
    NARROW_ENOUGH,
    Looks,
)

LOOKS = Looks((0.25, 0.5, 1.0), narrow=0.2, threshold=0.5)


def test_the_levels_errors_are_divided_among_the_looks() -> None:
    assert LOOKS.level_of_each(0.95) == pytest.approx(1 - 0.05 / 3)


def test_a_single_look_has_the_whole_level() -> None:
    assert Looks((1.0,)).level_of_each(0.95) == pytest.approx(0.95)


def test_each_look_takes_its_share_of_both_strata_rounded_up() -> None:
    assert LOOKS.n_at(1, n_active=60, n_silent=21) == (15, 6)
    assert LOOKS.n_at(3, n_active=60, n_silent=21) == (60, 21)


def test_a_share_that_is_a_whole_number_but_for_rounding_is_that_number() -> None:
    assert Looks((0.07, 1.0)).n_of(1, 100) == 7


def test_a_stratum_without_windows_has_none_at_any_look() -> None:
    assert LOOKS.n_at(1, n_active=10, n_silent=0) == (3, 0)


@given(
    st.lists(st.floats(1e-6, 0.999), unique=True, max_size=6),
    st.integers(1, 5000),
)
def test_looks_take_ever_more_windows_and_the_last_takes_all(
    shares: list[float], n_windows: int
) -> None:
    looks = Looks((*sorted(shares), 1.0))
    taken = [looks.n_of(number, n_windows) for number in range(1, len(looks) + 1)]
    assert taken == sorted(taken)
    assert taken[0] >= 1
    assert taken[-1] == n_windows


@pytest.mark.parametrize(
    ("interval", "why"),
    [
        (Interval(0.4, 0.6), NARROW_ENOUGH),
        (Interval(0.51, 0.9), ABOVE_THRESHOLD),
        (Interval(0.1, 0.49), BELOW_THRESHOLD),
        (Interval(0.3, 0.7), None),
        (Interval(0.5, 0.8), None),
        (None, None),
    ],
)
def test_scoring_stops_when_the_interval_says_enough(
    interval: Interval | None, why: str | None
) -> None:
    assert LOOKS.why_stop(1, interval) == why


@pytest.mark.parametrize("interval", [Interval(0.3, 0.7), None])
def test_the_last_look_always_ends_it(interval: Interval | None) -> None:
    assert LOOKS.why_stop(3, interval) == LAST_LOOK


def test_the_last_look_says_what_was_found_if_something_was() -> None:
    assert LOOKS.why_stop(3, Interval(0.51, 0.9)) == ABOVE_THRESHOLD


def test_without_a_width_or_threshold_only_the_last_look_ends_it() -> None:
    looks = Looks((0.5, 1.0))
    assert looks.why_stop(1, Interval(0.5, 0.5)) is None
    assert looks.why_stop(2, Interval(0.5, 0.5)) == LAST_LOOK


@pytest.mark.parametrize(
    "shares", [(), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 0.25, 1.0), (0.5, 1.0, 2.0)]
)
def test_shares_that_do_not_rise_to_the_whole_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        Looks(shares)


@pytest.mark.parametrize("narrow", [0.0, -0.1, float("nan")])
def test_a_width_that_no_interval_has_is_refused(narrow: float) -> None:
    with pytest.raises(ValueError, match="narrow"):
        Looks((1.0,), narrow=narrow)


@pytest.mark.parametrize("threshold", [1.5, -2.0, float("nan")])
def test_a_threshold_that_no_score_reaches_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        Looks((1.0,), threshold=threshold)


@pytest.mark.parametrize("look_number", [0, 4])
def test_looks_are_numbered_from_one(look_number: int) -> None:
    with pytest.raises(ValueError, match="numbered 1 to 3"):
        LOOKS.why_stop(look_number, None)
    with pytest.raises(ValueError, match="numbered 1 to 3"):
        LOOKS.n_of(look_number, 10)
