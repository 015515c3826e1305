"""How often intervals hold the truth, in the hardest places of benchmarks/interval_coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scopenote.evaluate.intervals import difference_interval

from .populations import NEAR, RESAMPLES, Cell, Kind, cover, population

RARE, COMMON, DENSE = 0.003, 0.01, 0.05
LEAST = 0.93


def test_with_few_silent_windows_only_the_guarded_interval_covers() -> None:
    found = cover(Cell(Kind(RARE, 0.01), 60, 20, None), 60)
    assert found.plain < 0.7
    assert found.fixed >= LEAST


def test_with_a_screen_and_looks_the_interval_covers() -> None:
    found = cover(Cell(Kind(COMMON, 0.01), 60, 500, 0.75), 60)
    assert min(found.fixed, found.looks) >= 0.9


def test_looks_save_windows_where_the_threshold_is_far_and_not_where_it_is_near() -> None:
    cell = Cell(Kind(DENSE, 0.01), 60, 200, None)
    far, near = cover(cell, 30, threshold=-0.6), cover(cell, 30, threshold=-0.05)
    assert far.used < 0.5
    assert near.used > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("density", "false_share", "n_silent", "recall"),
    [
        (RARE, 0.01, 2000, None),
        (COMMON, 0.01, 2000, 0.95),
        pytest.param(COMMON, 0.002, 2000, 0.95, marks=pytest.mark.long),
        pytest.param(DENSE, 0.002, 2000, 0.75, marks=pytest.mark.long),
    ],
)
def test_the_interval_covers_where_it_covers_least(
    density: float, false_share: float, n_silent: int, recall: float | None
) -> None:
    found = cover(Cell(Kind(density, false_share), 60, n_silent, recall), 1000, NEAR)
    assert min(found.fixed, found.looks) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("n_active", [10, 30])
@pytest.mark.parametrize(
    ("density", "false_share", "n_silent", "recall"),
    [(RARE, 0.002, 20, None), (RARE, 0.01, 2000, None), (COMMON, 0.01, 2000, 0.75)],
)
def test_the_interval_covers_with_few_active_windows(
    n_active: int, density: float, false_share: float, n_silent: int, recall: float | None
) -> None:
    found = cover(Cell(Kind(density, false_share), n_active, n_silent, recall), 300, NEAR)
    assert min(found.fixed, found.looks) >= LEAST


def cover_difference(cell: Cell, n_draws: int) -> float:
    """How often the interval holds the difference of two labels on the same windows.

    The other label errs as the population's own does in a fifth of the cell's false positives.
    """
    worse = population(cell.kind)
    better = population(Kind(cell.kind.density, cell.kind.false_share / 5))
    assert np.array_equal(worse.is_active, better.is_active)
    assert worse.is_false[better.is_false].all()
    truth, rng = better.correlation - worse.correlation, np.random.default_rng(0)
    held = 0
    for _ in range(n_draws):
        order = worse.draw(rng, cell.n_active, cell.n_silent, cell.recall)
        one, other = order.of(better).all(), order.all()
        found = difference_interval(one.moments, other.moments, other.design, RESAMPLES)
        held += bool(found.low <= truth <= found.high)
    return held / n_draws


def test_the_difference_of_two_labels_is_covered_where_no_false_positive_was_seen() -> None:
    assert cover_difference(Cell(Kind(RARE, 0.01), 60, 20, None), 60) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("density", [RARE, DENSE])
@pytest.mark.parametrize(("n_active", "n_silent"), [(15, 2000), (60, 200), (60, 2000)])
@pytest.mark.parametrize("recall", [None, pytest.param(0.75, marks=pytest.mark.long)])
def test_the_difference_of_two_labels_is_covered(
    density: float, n_active: int, n_silent: int, recall: float | None
) -> None:
    assert cover_difference(Cell(Kind(density, 0.01), n_active, n_silent, recall), 300) >= LEAST
