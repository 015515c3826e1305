"""Squares and deviations explained, against plain arithmetic and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
from scopenote.evaluate.correlation import NOT_FINITE, NOTHING_SIMULATED
from scopenote.evaluate.explained import SILENT_TRUTH, absolute_deviation_explained, r_squared

TRUTH = np.array([[0.0, 2.0, 4.0], [0.0, 0.0, 7.0]], dtype=np.float32)
IS_TOKEN = np.array([[True, True, True], [True, True, False]])


def test_padding_does_not_count() -> None:
    predicted = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 99.0]], dtype=np.float32)
    assert r_squared(predicted, TRUTH, IS_TOKEN).value == pytest.approx(1 - 5 / 20)
    explained = absolute_deviation_explained(predicted, TRUTH, IS_TOKEN).value
    assert explained == pytest.approx(1 - 3 / 6)


@pytest.mark.parametrize("measure", [r_squared, absolute_deviation_explained])
def test_truth_explains_all_nothing_explains_nothing_and_worse_is_negative(measure) -> None:
    assert measure(TRUTH, TRUTH, IS_TOKEN).value == 1
    assert measure(np.zeros_like(TRUTH), TRUTH, IS_TOKEN).value == 0
    assert measure(-TRUTH, TRUTH, IS_TOKEN).value < 0


@pytest.mark.parametrize("measure", [r_squared, absolute_deviation_explained])
def test_what_is_undefined_says_why(measure) -> None:
    nowhere = np.zeros_like(IS_TOKEN)
    assert measure(TRUTH, TRUTH, nowhere).reason == NOTHING_SIMULATED
    assert measure(TRUTH, np.zeros_like(TRUTH), IS_TOKEN).reason == SILENT_TRUTH
    assert measure(TRUTH * np.float32("nan"), TRUTH, IS_TOKEN).reason == NOT_FINITE
