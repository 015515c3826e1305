"""Differences of two sides' scores: on average, feature by feature, and how far to trust them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.intervals import Resamples, draw_resamples
from scopenote.evaluate.paired_difference import (
    SideScores,
    difference_from_lifts,
    margins,
    paired_difference,
)
from scopenote.evaluate.score_change import change_of_pairs

NAN = np.nan


@pytest.fixture(scope="module")
def resamples() -> Resamples:
    return draw_resamples(0)


def scores(value: list[float] | np.ndarray, half: float | np.ndarray = 0.05) -> SideScores:
    values = np.asarray(value, np.float64)
    return SideScores(values, values - half, values + half)


def test_the_mean_is_the_one_that_a_runs_summary_gives(resamples: Resamples) -> None:
    before, now = np.random.default_rng(0).random((2, 200))
    found = paired_difference(scores(before), scores(now), resamples)
    assert found is not None
    assert found.mean == change_of_pairs(before, now, resamples)
    assert found.mean_other - found.mean_base == pytest.approx(found.mean.value)
    assert (found.median_base, found.median_other) == (np.median(before), np.median(now))


def test_features_are_counted_by_sign_and_by_what_the_intervals_allow(
    resamples: Resamples,
) -> None:
    base = scores([0.5, 0.5, 0.5, 0.5, 0.5])
    other = scores([0.5, 0.56, 0.58, 0.44, 0.42])  # the intervals allow 0.0707
    found = paired_difference(base, other, resamples)
    assert found is not None
    assert (found.n_better, found.n_worse, found.n_equal) == (2, 2, 1)
    assert (found.n_clearly_better, found.n_clearly_worse) == (1, 1)
    assert found.n_without_interval == 0


def test_without_an_interval_nothing_is_clear(resamples: Resamples) -> None:
    none = np.full(5, NAN)
    base = SideScores(np.zeros(5), none, none)
    found = paired_difference(base, scores(np.ones(5)), resamples)
    assert found is not None
    assert (found.n_better, found.n_clearly_better, found.n_without_interval) == (5, 0, 5)


def test_no_pairs_have_no_difference(resamples: Resamples) -> None:
    assert paired_difference(scores([]), scores([]), resamples) is None
    assert difference_from_lifts(np.zeros(0), scores([]), resamples) is None


def test_identical_sides_differ_by_nothing(resamples: Resamples) -> None:
    same = scores(np.random.default_rng(1).random(60))
    found = paired_difference(same, same, resamples)
    assert found is not None
    assert (found.mean.value, found.mean.low, found.mean.high) == (0, 0, 0)
    assert (found.n_equal, found.n_clearly_better, found.n_clearly_worse) == (60, 0, 0)


LIMIT = st.floats(0, 0.5)
SCORE = st.tuples(st.floats(-1, 1), LIMIT, LIMIT)


@given(SCORE, SCORE)
def test_margins_are_those_that_arithmetic_by_hand_gives(
    one: tuple[float, float, float], two: tuple[float, float, float]
) -> None:
    (a, a_down, a_up), (b, b_down, b_up) = one, two
    base = SideScores(*(np.array([it]) for it in (a, a - a_down, a + a_up)))
    other = SideScores(*(np.array([it]) for it in (b, b - b_down, b + b_up)))
    if b > a:
        lower = (b - a) - math.sqrt(b_down**2 + a_up**2)
        expected = lower
    else:
        upper = (b - a) + math.sqrt(b_up**2 + a_down**2)
        expected = -upper
    assert margins(base, other)[0] == pytest.approx(expected, abs=1e-9)
    # The other way round it is as clear.
    assert margins(other, base)[0] == pytest.approx(expected, abs=1e-9) or a == b


def test_lifts_are_clear_by_their_own_intervals(resamples: Resamples) -> None:
    lift = SideScores(
        np.array([0.2, 0.2, -0.2, -0.2, 0.0]),
        np.array([0.1, -0.1, -0.3, -0.3, NAN]),
        np.array([0.3, 0.3, -0.1, 0.1, NAN]),
    )
    found = difference_from_lifts(np.full(5, 0.5), lift, resamples)
    assert found is not None
    assert (found.n_clearly_better, found.n_clearly_worse, found.n_without_interval) == (1, 1, 1)
    assert found.mean.value == pytest.approx(0.0)
    assert found.mean_other == pytest.approx(0.5)
    assert found.mean_base == pytest.approx(0.5)


def test_a_planted_difference_lies_in_its_interval_and_noise_is_seldom_clear(
    resamples: Resamples,
) -> None:
    """Features differ much, one side is 0.03 better on each, and scores are estimates."""
    held = clear = 0
    n, n_trials, sd = 300, 200, 0.04
    for trial in range(n_trials):
        draw = np.random.default_rng(trial)
        truth = draw.beta(2, 2, n)
        noise = draw.normal(0, sd, (2, n))
        found = paired_difference(
            scores(truth + noise[0], 1.96 * sd), scores(truth + 0.03 + noise[1], 1.96 * sd),
            resamples,
        )  # fmt: skip
        equal = paired_difference(
            scores(truth + noise[0], 1.96 * sd), scores(truth + noise[1], 1.96 * sd), resamples
        )
        assert found is not None
        assert equal is not None
        assert found.mean.low is not None
        assert found.mean.high is not None
        held += found.mean.low <= 0.03 <= found.mean.high
        clear += equal.n_clearly_better + equal.n_clearly_worse
    assert 0.91 <= held / n_trials <= 0.99
    assert clear / (n * n_trials) == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize("n_sides", [2, 4])
def test_several_comparisons_hold_together_as_often_as_is_said(n_sides: int) -> None:
    """Each at a level of its own, as `compare_tables` takes them: all of them hold at 95%."""
    level = 1 - 0.05 / n_sides
    several, held, n_trials = draw_resamples(0, 1000 * n_sides), 0, 150
    for trial in range(n_trials):
        draw = np.random.default_rng(trial)
        base = draw.random(80)
        found = [
            paired_difference(
                scores(base), scores(base + draw.normal(0.1, 0.2, 80)), several, level
            )
            for _ in range(n_sides)
        ]
        held += all(
            it is not None
            and it.mean.low is not None
            and it.mean.high is not None
            and it.mean.low <= 0.1 <= it.mean.high
            for it in found
        )
    assert held / n_trials >= 0.91
