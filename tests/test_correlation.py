"""Pearson correlation at natural density, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.correlation import (
    CONSTANT_PREDICTION,
    CONSTANT_TRUTH,
    NOT_FINITE,
    NOTHING_SIMULATED,
    TOO_FEW_ACTIVE,
    correlation,
    ev_correlation,
    window_moments,
)

T = 6


class Population:
    """Zero-inflated activations and noisy predictions of them, some windows padded."""

    def __init__(self, seed: int, n_windows: int = 12, offset: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        shape = (n_windows, T)
        self.is_token = np.arange(T) < rng.integers(1, T + 1, n_windows)[:, None]
        self.is_token[:3] = True
        fires = (rng.random(shape) < 0.2) & (rng.random((n_windows, 1)) < 0.5)
        fires[:3, 0] = True
        self.truth = np.where(fires, rng.exponential(5, shape), 0).astype(np.float32)
        noisy = self.truth + rng.normal(0, 1, shape) + offset
        self.predicted = np.where(self.is_token, noisy, 0).astype(np.float32)
        self.truth *= self.is_token
        self.copies = rng.integers(1, 5, n_windows)

    def expanded(self) -> tuple[np.ndarray, np.ndarray]:
        """Every token as often as its window counts, in float64."""
        times = np.repeat(self.copies, self.is_token.sum(axis=1))
        return tuple(
            np.repeat(values[self.is_token].astype(np.float64), times)
            for values in (self.predicted, self.truth)
        )


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.sampled_from([0.0, 3.0, 1e4, -1e6]))
def test_weights_count_like_copies_of_the_window(seed: int, offset: float) -> None:
    population = Population(seed, offset=offset)
    weighted = correlation(
        population.predicted, population.truth, population.is_token, population.copies * 7.5
    )
    assert weighted.value == pytest.approx(np.corrcoef(*population.expanded())[0, 1], abs=1e-9)


@given(seeds)
def test_the_classic_is_the_correlation_of_the_concatenated_tokens(seed: int) -> None:
    population = Population(seed)
    population.copies[:] = 1
    plain = ev_correlation(population.predicted, population.truth, population.is_token)
    assert plain.value == pytest.approx(np.corrcoef(*population.expanded())[0, 1], abs=1e-9)


@given(seeds, st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_scale_and_shift_of_the_prediction_do_not_matter(
    seed: int, scale: float, shift: float
) -> None:
    population = Population(seed)
    predicted = population.predicted.astype(np.float64)
    moved = np.where(population.is_token, predicted * scale + shift, 0)
    rest = (population.truth, population.is_token, population.copies)
    assert correlation(moved, *rest).value == pytest.approx(
        correlation(predicted, *rest).value, abs=1e-9
    )


@given(seeds)
def test_a_negated_prediction_keeps_its_sign(seed: int) -> None:
    population = Population(seed)
    rest = (population.truth, population.is_token, population.copies)
    assert correlation(-population.predicted, *rest).value == pytest.approx(
        -correlation(population.predicted, *rest).value, abs=1e-12
    )


@given(seeds)
def test_the_order_of_the_windows_does_not_matter(seed: int) -> None:
    population = Population(seed)
    order = np.random.default_rng(seed).permutation(len(population.truth))
    columns = (population.predicted, population.truth, population.is_token, population.copies)
    assert correlation(*(column[order] for column in columns)).value == pytest.approx(
        correlation(*columns).value, abs=1e-12
    )


@given(seeds)
def test_more_padding_changes_nothing(seed: int) -> None:
    population = Population(seed)
    columns = (population.predicted, population.truth, population.is_token)
    wider = [np.pad(column, ((0, 0), (0, 5))) for column in columns]
    weight = population.copies
    assert correlation(*wider, weight).value == pytest.approx(
        correlation(*columns, weight).value, abs=1e-12
    )
    assert ev_correlation(*wider) == ev_correlation(*columns)


def test_moments_tell_the_population_s_mean_and_standard_deviation() -> None:
    population = Population(5, offset=1e4)
    moments = window_moments(
        population.predicted, population.truth, population.is_token, population.copies
    )
    predicted, truth = population.expanded()
    assert moments.predicted.mean == pytest.approx(predicted.mean(), rel=1e-12)
    assert moments.predicted.sd == pytest.approx(predicted.std(), rel=1e-9)
    assert moments.true.mean == pytest.approx(truth.mean(), rel=1e-12)
    assert moments.true.sd == pytest.approx(truth.std(), rel=1e-9)


def reason_for(predicted: np.ndarray, truth: np.ndarray, is_token: np.ndarray) -> str | None:
    columns = (predicted.astype(np.float32), truth.astype(np.float32), is_token)
    found = correlation(*columns, np.ones(len(truth)))
    assert found.value is None
    assert ev_correlation(*columns) == found
    return found.reason


def test_no_tokens_mean_nothing_was_simulated() -> None:
    nothing = np.zeros((2, T))
    assert reason_for(nothing, nothing, nothing > 0) == NOTHING_SIMULATED
    assert reason_for(nothing[:0], nothing[:0], nothing[:0] > 0) == NOTHING_SIMULATED


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_prediction_or_truth_that_is_not_finite_is_named(value: float) -> None:
    population = Population(1)
    broken = population.predicted.copy()
    broken[1, 2] = value
    assert reason_for(broken, population.truth, population.is_token) == NOT_FINITE
    assert reason_for(population.predicted, broken, population.is_token) == NOT_FINITE


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e-30, 12345.678])
def test_a_constant_has_no_correlation_whatever_rounding_makes_of_it(constant: float) -> None:
    population = Population(2)
    same = population.is_token * constant
    assert not population.is_token.all()
    assert reason_for(same, population.truth, population.is_token) == CONSTANT_PREDICTION
    assert reason_for(population.predicted, same, population.is_token) == CONSTANT_TRUTH


def test_two_active_tokens_are_too_few_and_three_are_enough() -> None:
    population = Population(3)
    truth = np.zeros_like(population.truth)
    truth[0, 0] = truth[1, 3] = 2.0
    assert reason_for(population.predicted, truth, population.is_token) == TOO_FEW_ACTIVE
    truth[2, 1] = 1.0
    columns = (population.predicted, truth, population.is_token)
    assert correlation(*columns, population.copies).value is not None
    assert ev_correlation(*columns).value is not None


def test_a_window_that_stands_for_nothing_is_refused() -> None:
    population = Population(4)
    with pytest.raises(ValueError, match="drop it"):
        correlation(population.predicted, population.truth, population.is_token, np.zeros(12))
