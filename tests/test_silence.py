"""The ceiling that predictions on silent windows set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.correlation import MeanAndSd, WindowMoments, window_moments
from scopenote.evaluate.silence import Silence, ceiling, predictions_in_silence


def moments_of(predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> WindowMoments:
    found = window_moments(predicted, truth, np.ones(truth.shape, bool), weight)
    assert isinstance(found, WindowMoments)
    return found


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.01, 3))
def test_the_ceiling_is_what_a_label_perfect_but_for_silence_reaches(
    seed: int, mean: float, sd: float
) -> None:
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random((60, 8)) < 0.3, rng.exponential(2, (60, 8)), 0)
    truth[0, :3] = 1.0
    is_silent = np.arange(60) >= 20
    truth[is_silent] = 0
    perfect = np.where(is_silent[:, None], rng.normal(mean, sd, truth.shape), truth)
    weight = np.where(is_silent, 7.0, 2.0)
    moments = moments_of(perfect, truth, weight)
    reached = np.cov(perfect.ravel(), truth.ravel(), aweights=np.repeat(weight, 8))
    silence = predictions_in_silence(moments, is_silent)
    assert ceiling(moments.true, silence) == pytest.approx(
        reached[0, 1] / (reached[0, 0] * reached[1, 1]) ** 0.5, abs=1e-9
    )


def test_noise_of_a_hundredth_of_full_scale_caps_a_perfect_label_at_two_thirds() -> None:
    # The anchor of DESIGN.md: noise 0.1 of 10 at 0.3% density leaves .66. It does not say how
    # strong the active tokens are: this is so at a mean of 1.13 (exponential).
    density, active_mean = 0.003, 1.13
    mean = density * active_mean
    truth = MeanAndSd(mean, (density * 2 * active_mean**2 - mean**2) ** 0.5)
    noise = Silence(1 - density, MeanAndSd(0.0, 0.1))
    assert ceiling(truth, noise) == pytest.approx(0.66, abs=0.01)


def test_without_noise_the_ceiling_is_one() -> None:
    assert ceiling(MeanAndSd(0.2, 1.0), Silence(0.9, MeanAndSd(0.0, 0.0))) == pytest.approx(1)


def test_predictions_in_silence_count_like_the_windows_they_stand_for() -> None:
    truth = np.zeros((3, 4))
    truth[0, :3] = 5
    predicted = np.array([[5, 5, 5, 0], [1, 1, 1, 1], [4, 4, 4, 4]], float)
    moments = moments_of(predicted, truth, np.array([1.0, 2.0, 1.0]))
    silence = predictions_in_silence(moments, np.array([False, True, True]))
    assert silence.share == pytest.approx(3 / 4)
    assert silence.predicted.mean == pytest.approx(2)
    assert silence.predicted.sd == pytest.approx(2**0.5)


def test_a_split_without_silent_windows_has_no_silence() -> None:
    truth = np.eye(4)
    moments = moments_of(truth * 2 + 1, truth, np.ones(4))
    assert predictions_in_silence(moments, np.zeros(4, bool)) is None


def test_a_perfect_label_that_would_predict_a_constant_has_no_ceiling() -> None:
    assert ceiling(MeanAndSd(1.0, 1.0), Silence(0.5, MeanAndSd(2.0, 0.0))) is None
