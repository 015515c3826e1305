"""Which windows the classic score is taken over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scopenote.evaluate.classic import draw_random_windows
from scopenote.store.records import FeatureId

from .planted_feature import FEATURE, make_contexts, make_stratum

ACTIVE = make_stratum([[1]] * 50, [[2.0]] * 50, population=2_000)
SILENT = make_stratum([[2]] * 400, population=8_000, first_id=100)
CONTEXTS = make_contexts(ACTIVE, SILENT, split="score")


def draws(contexts=CONTEXTS, n_features: int = 600) -> np.ndarray:
    return np.array(
        [
            draw_random_windows(replace(contexts, feature_id=FeatureId("toy/1", i)), seed=0)
            for i in range(n_features)
        ]
    )


def test_active_windows_are_drawn_as_often_as_they_occur_in_the_split() -> None:
    assert (draws() < 50).mean() == pytest.approx(0.2, abs=0.03)


def test_windows_of_a_stratum_are_drawn_alike() -> None:
    silent = draws()[draws() >= 50] - 50
    assert silent.mean() == pytest.approx(199.5, abs=10)
    assert len(np.unique(silent)) > 390


def test_a_window_that_occurs_more_often_is_drawn_more_often() -> None:
    copies = np.where(np.arange(400) < 100, 9, 1)
    often = replace(SILENT, windows=replace(SILENT.windows, copies=copies))
    silent = draws(replace(CONTEXTS, silent=often))
    silent = silent[silent >= 50] - 50
    assert (silent < 100).mean() == pytest.approx(900 / 1200, abs=0.05)


def test_no_window_is_drawn_twice() -> None:
    few = make_contexts(make_stratum([]), make_stratum([[1]] * 6, first_id=5), split="score")
    for seed in range(20):
        assert len(set(draw_random_windows(few, seed).tolist())) == 5


def test_seed_and_feature_decide_the_windows() -> None:
    first = draw_random_windows(CONTEXTS, seed=1)
    other = replace(CONTEXTS, feature_id=replace(FEATURE, feature=8))
    assert np.array_equal(first, draw_random_windows(CONTEXTS, seed=1))
    assert not np.array_equal(first, draw_random_windows(CONTEXTS, seed=2))
    assert not np.array_equal(first, draw_random_windows(other, seed=1))


def test_of_no_windows_none_are_drawn() -> None:
    nothing = make_contexts(make_stratum([]), make_stratum([]), split="score")
    assert draw_random_windows(nothing, seed=1).tolist() == []
