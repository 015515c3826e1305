"""Shares corrected for chance, and their exact intervals against the binomial counted out."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.chance import above_chance


def limits(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Of the share itself."""
    interval = above_chance(successes, n, 0.0, level).interval
    return interval.low, interval.high


def probability(k: int, n: int, p: float) -> float:
    """Of k successes, by adding up all sequences of n trials that have so many."""
    return sum(
        math.prod(p if each else 1 - p for each in trials)
        for trials in itertools.product((0, 1), repeat=n)
        if sum(trials) == k
    )


def test_chance_is_0_and_success_throughout_is_1() -> None:
    assert above_chance(10, 20, 0.5, 0.95).value == 0
    assert above_chance(20, 20, 0.5, 0.95).value == 1
    assert above_chance(0, 20, 0.5, 0.95).value == -1
    assert above_chance(4, 12, 1 / 3, 0.95).value == pytest.approx(0)
    assert above_chance(0, 12, 1 / 3, 0.95).value == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # As printed in tables of the exact interval.
    [(20, 20, 0.8316, 1.0), (0, 10, 0.0, 0.3085), (8, 10, 0.4439, 0.9748), (5, 10, 0.1871, 0.8129)],
)
def test_the_limits_are_those_of_published_tables(k: int, n: int, low: float, high: float) -> None:
    assert limits(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("p", [0.02, 0.2, 0.5, 0.77, 1.0])
def test_the_interval_holds_the_share_at_least_as_often_as_it_says(n: int, p: float) -> None:
    covered = 0.0
    for k in range(n + 1):
        low, high = limits(k, n, 0.9)
        covered += probability(k, n, p) * (low <= p <= high)
    assert covered >= 0.9 - 1e-9


@given(st.integers(1, 40), st.data())
def test_the_value_lies_within_and_ties_widen_the_interval(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, 2 * n)) / 2
    found = above_chance(successes, n, 0.5, 0.95)
    assert found.interval.low <= found.value <= found.interval.high
    below, above = (
        above_chance(whole, n, 0.5, 0.95).interval
        for whole in (math.floor(successes), math.ceil(successes))
    )
    assert found.interval.low == below.low
    assert found.interval.high == above.high
