"""Differences of scores between runs: their intervals, and how often these hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scopenote.evaluate.intervals import Resamples, draw_resamples
from scopenote.evaluate.score_change import (
    MIN_FEATURES,
    _resampled_medians,
    change_of_medians,
    change_of_pairs,
)

NAN = np.nan
N_TRIALS = 400


@pytest.fixture(scope="module")
def resamples() -> Resamples:
    return draw_resamples(0)


def test_pairs_that_moved_alike_leave_no_doubt(resamples: Resamples) -> None:
    before = np.linspace(0.1, 0.8, 30)
    found = change_of_pairs(before, before + 0.1, resamples)
    assert found is not None
    assert (found.n, found.value) == (30, pytest.approx(0.1))
    assert found.low == pytest.approx(0.1, abs=1e-6)
    assert found.high == pytest.approx(0.1, abs=1e-6)


def test_no_features_have_no_difference_and_few_no_interval(resamples: Resamples) -> None:
    none = np.zeros(0)
    assert change_of_pairs(none, none, resamples) is None
    few = np.zeros(MIN_FEATURES - 1)
    found = change_of_pairs(few, few + 0.5, resamples)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, None, None)
    assert change_of_medians(np.full(3, NAN), few[:3], resamples) is None


def test_the_same_scores_give_the_same_interval(resamples: Resamples) -> None:
    before, now = np.random.default_rng(0).random((2, 900))
    again = draw_resamples(0)
    assert change_of_pairs(before, now, resamples) == change_of_pairs(before, now, again)
    assert change_of_medians(before, now, resamples) == change_of_medians(before, now, again)


def test_features_that_stayed_as_they_were_move_no_median(resamples: Resamples) -> None:
    scores = np.random.default_rng(0).random(50)
    found = change_of_medians(scores, scores, resamples)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_medians_of_resamples_are_those_that_sorting_gives(resamples: Resamples) -> None:
    scores = np.round(np.random.default_rng(1).random(41), 3)
    scores[7] = NAN
    found = _resampled_medians(scores, resamples)
    places = np.flatnonzero(np.isfinite(scores))
    for number in range(0, len(resamples), 97):
        drawn = np.sort(np.repeat(scores[places], resamples.count[places, number].astype(int)))
        assert found[number] == drawn[(len(drawn) - 1) // 2]


def test_a_negative_score_keeps_its_place(resamples: Resamples) -> None:
    found = _resampled_medians(np.full(9, -0.25), resamples)
    assert set(found[np.isfinite(found)]) == {-0.25}


@pytest.mark.parametrize(
    "n",
    [6, 20, pytest.param(200, marks=pytest.mark.long), pytest.param(2000, marks=pytest.mark.long)],
)
def test_the_mean_of_pairs_lies_in_its_interval_as_often_as_it_says(
    resamples: Resamples, n: int
) -> None:
    """Skewed differences: most features hardly move, some a lot."""
    draw = np.random.default_rng(n)
    n_held = 0
    for _ in range(N_TRIALS):
        before = draw.beta(2, 2, n)
        found = change_of_pairs(before, before + draw.exponential(0.1, n) - 0.05, resamples)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        n_held += found.low <= 0.05 <= found.high
    assert n_held / N_TRIALS == pytest.approx(0.94, abs=0.04)


@pytest.mark.parametrize(
    ("n_kept", "n_new"),
    [
        (20, 5),
        (20, 40),
        pytest.param(400, 100, marks=pytest.mark.long),
    ],
)
def test_the_difference_of_medians_lies_in_its_interval_as_often_as_it_says(
    resamples: Resamples, n_kept: int, n_new: int
) -> None:
    """Some features are scored anew and better, others for the first time."""
    share = n_new / (n_kept + n_new)

    def states(n: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        is_new = draw.random(n) < share
        before = draw.beta(2, 3, n)
        now = np.where(draw.random(n) < 0.5, before, draw.beta(4, 3, n))
        return np.where(is_new, NAN, before), now

    before, now = states(1_000_000, np.random.default_rng(0))
    truth = np.nanmedian(now) - np.nanmedian(before)
    draw = np.random.default_rng(1)
    n_held = 0
    for _ in range(N_TRIALS):
        found = change_of_medians(*states(n_kept + n_new, draw), resamples)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        n_held += found.low <= truth <= found.high
    # A little more often: a median of few takes few values.
    assert 0.93 <= n_held / N_TRIALS <= 0.995
