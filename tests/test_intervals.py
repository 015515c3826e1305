"""Intervals of a correlation: what they are made of, and how often they hold the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.evaluate import intervals
from scopenote.evaluate.correlation import WindowMoments, correlation_of, window_moments
from scopenote.evaluate.intervals import (
    N_GROUPS,
    Design,
    Interval,
    Resamples,
    difference_interval,
    draw_resamples,
    guarded_interval,
)

T = 8
RESAMPLES = draw_resamples(seed=7, n_resamples=400)


@dataclass
class Sample:
    """Windows drawn from a split, and what the split's correlation truly is."""

    predicted: np.ndarray
    truth: np.ndarray
    weight: np.ndarray
    design: Design

    def moments(self, predicted: np.ndarray | None = None) -> WindowMoments:
        predicted = self.predicted if predicted is None else predicted
        found = window_moments(predicted, self.truth, np.ones(self.truth.shape, bool), self.weight)
        assert isinstance(found, WindowMoments)
        return found

    def take(self, rows: np.ndarray) -> Sample:
        design = Design(self.design.document[rows], self.design.is_silent[rows])
        return Sample(self.predicted[rows], self.truth[rows], self.weight[rows], design)


class Split:
    """A split whose documents differ in how often the feature fires and the label errs."""

    def __init__(
        self,
        seed: int,
        n_documents: int = 2000,
        active_share: float = 0.02,
        false_share: float = 0.005,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.document = np.repeat(np.arange(n_documents), 8)
        n = len(self.document)

        def happens(share: float) -> np.ndarray:
            leaning = rng.gamma(0.3, 1 / 0.3, n_documents)[self.document]
            return rng.random(n) < np.minimum(share * leaning, 0.8)

        self.is_active, false = happens(active_share), happens(false_share)
        self.truth = np.zeros((n, T), np.float32)
        self.predicted = np.abs(rng.normal(0, 0.02, (n, T))).astype(np.float32)
        height = rng.exponential(1, n)
        self.truth[self.is_active, 2] = height[self.is_active]
        hit = self.is_active & (rng.random(n) < 0.8)
        skill = rng.normal(1, 0.3, n_documents).clip(0)[self.document]
        self.predicted[hit, 2] += (skill * (height + rng.normal(0, 0.3, n)).clip(0))[hit]
        self.predicted[false, 5] += rng.exponential(1, n)[false]
        whole = window_moments(
            self.predicted, self.truth, np.ones(self.truth.shape, bool), np.ones(n)
        )
        self.correlation = correlation_of(whole).value

    def sample(self, rng: np.random.Generator, n_active: int, n_silent: int) -> Sample:
        active, silent = np.flatnonzero(self.is_active), np.flatnonzero(~self.is_active)
        rows = np.concatenate(
            [rng.choice(active, n_active, False), rng.choice(silent, n_silent, False)]
        )
        is_silent = np.arange(len(rows)) >= n_active
        weight = np.where(is_silent, len(silent) / n_silent, len(active) / n_active)
        design = Design(self.document[rows], is_silent)
        return Sample(self.predicted[rows], self.truth[rows], weight, design)


@pytest.fixture(scope="module")
def split() -> Split:
    return Split(seed=1)


def sample_of(split: Split, seed: int, n_active: int = 40, n_silent: int = 200) -> Sample:
    return split.sample(np.random.default_rng(seed), n_active, n_silent)


def resample_slowly(sample: Sample, resamples: Resamples, guarded: bool) -> np.ndarray:
    """One resample after the other, token by token, in float64."""
    values = []
    is_active = ~sample.design.is_silent
    groups = sample.design.document % N_GROUPS
    for b in range(len(resamples)):
        weight = sample.weight * resamples.count[groups, b]
        predicted, truth, is_silent = sample.predicted, sample.truth, sample.design.is_silent
        if guarded:
            picked = np.flatnonzero(is_active)[int(resamples.pseudo_pick[b] * is_active.sum())]
            one = resamples.pseudo_weight[b] * sample.weight[is_silent].mean()
            weight = np.append(weight, one)
            predicted = np.vstack([predicted, predicted[picked]])
            truth = np.vstack([truth, np.zeros(T)])
            is_silent = np.append(is_silent, True)
        for part in (is_silent, ~is_silent):
            total = sample.weight[part[: len(sample.weight)]].sum()
            weight[part] *= total / weight[part].sum()
        w = np.repeat(weight, T)
        p, t = (x.astype(np.float64).ravel() for x in (predicted, truth))
        p, t = p - np.average(p, weights=w), t - np.average(t, weights=w)
        variances = np.average(p * p, weights=w) * np.average(t * t, weights=w)
        values.append(np.average(p * t, weights=w) / variances**0.5)
    return np.array(values)


def test_resampling_agrees_with_the_slow_obvious_way(split: Split) -> None:
    resamples = draw_resamples(seed=3, n_resamples=100)
    sample = sample_of(split, seed=2)
    plain, guarded = intervals._resampled(sample.moments(), sample.design, resamples)
    assert plain == pytest.approx(resample_slowly(sample, resamples, guarded=False), abs=1e-5)
    assert guarded == pytest.approx(resample_slowly(sample, resamples, guarded=True), abs=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_the_interval_holds_the_estimate_and_ignores_the_order_of_windows(seed: int) -> None:
    sample = sample_of(SMALL, seed)
    found = guarded_interval(sample.moments(), sample.design, RESAMPLES)
    value = correlation_of(sample.moments()).value
    assert -1 <= found.low <= value <= found.high <= 1

    # The pseudo-window is picked by place among the active: those keep their order here.
    rows = np.arange(len(sample.weight))
    rows[40:] = np.random.default_rng(seed).permutation(rows[40:])
    again = sample.take(rows)
    other = guarded_interval(again.moments(), again.design, RESAMPLES)
    assert other.low == pytest.approx(found.low, abs=1e-4)
    assert other.high == pytest.approx(found.high, abs=1e-4)


SMALL = Split(seed=4, n_documents=400, active_share=0.05)


def test_the_same_seed_draws_the_same_resamples() -> None:
    again, other = draw_resamples(7, 400), draw_resamples(8, 400)
    assert np.array_equal(again.count, RESAMPLES.count)
    assert not np.array_equal(other.count, RESAMPLES.count)


def test_too_few_resamples_have_no_tails() -> None:
    with pytest.raises(ValueError, match="tails"):
        draw_resamples(7, 99)


def test_few_silent_windows_without_a_false_positive_do_not_prove_there_are_none(
    split: Split,
) -> None:
    sample = sample_of(split, seed=3, n_silent=20)
    quiet = sample.predicted.copy()
    quiet[sample.design.is_silent] = 0
    moments = sample.moments(quiet)
    plain, _ = intervals._resampled(moments, sample.design, RESAMPLES)
    guarded = guarded_interval(moments, sample.design, RESAMPLES)
    assert guarded.low < np.quantile(plain, 0.001) - 0.2
    assert guarded.high <= plain.max()


def test_more_silent_windows_make_the_interval_narrower(split: Split) -> None:
    widths = []
    for n_silent in (20, 200, 2000):
        sample = sample_of(split, seed=5, n_active=60, n_silent=n_silent)
        found = guarded_interval(sample.moments(), sample.design, RESAMPLES)
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_a_split_without_silence_needs_no_guard(split: Split) -> None:
    sample = sample_of(split, seed=6).take(np.arange(40))
    plain, guarded = intervals._resampled(sample.moments(), sample.design, RESAMPLES)
    assert np.array_equal(plain, guarded)
    assert isinstance(guarded_interval(sample.moments(), sample.design, RESAMPLES), Interval)


def test_windows_mostly_from_one_document_have_no_interval(split: Split) -> None:
    sample = sample_of(split, seed=7)
    document = sample.design.document.copy()
    document[:30] = document[0]
    alike = replace(sample.design, document=document)
    assert guarded_interval(sample.moments(), alike, RESAMPLES) is None
    assert difference_interval(sample.moments(), sample.moments(), alike, RESAMPLES) is None


def test_windows_of_one_document_are_worth_less_than_as_many_documents(split: Split) -> None:
    sample = sample_of(split, seed=8, n_active=60, n_silent=2000)
    by_tens = sample.design.document.copy()
    by_tens[:60] = np.sort(-sample.truth[:60].sum(axis=1)).argsort() // 10
    clustered = guarded_interval(
        sample.moments(), replace(sample.design, document=by_tens), RESAMPLES
    )
    apart = guarded_interval(sample.moments(), sample.design, RESAMPLES)
    assert clustered.high - clustered.low > 1.2 * (apart.high - apart.low)


def test_resamples_without_a_stratum_are_left_out_of_the_limits(split: Split) -> None:
    sample = sample_of(split, seed=9, n_active=10, n_silent=3)
    plain, _ = intervals._resampled(sample.moments(), sample.design, RESAMPLES)
    assert np.isnan(plain).any()
    found = guarded_interval(sample.moments(), sample.design, RESAMPLES)
    assert np.isfinite([found.low, found.high]).all()


def test_a_prediction_differs_from_itself_by_nothing(split: Split) -> None:
    sample = sample_of(split, seed=10)
    found = difference_interval(sample.moments(), sample.moments(), sample.design, RESAMPLES)
    assert found == Interval(0.0, 0.0)


def test_pairing_shows_a_difference_that_separate_intervals_hide(split: Split) -> None:
    sample = sample_of(split, seed=11, n_active=60, n_silent=2000)
    noise = np.random.default_rng(0).normal(0, 0.04, sample.predicted.shape)
    better, worse = sample.moments(), sample.moments(sample.predicted + noise)
    lift = difference_interval(better, worse, sample.design, RESAMPLES)
    alone = [guarded_interval(each, sample.design, RESAMPLES) for each in (better, worse)]
    assert lift.low > 0
    assert alone[0].low < alone[1].high


def test_the_difference_reversed_is_the_interval_reversed(split: Split) -> None:
    sample = sample_of(split, seed=12)
    other = sample.moments(sample.predicted[:, ::-1])
    there = difference_interval(sample.moments(), other, sample.design, RESAMPLES)
    back = difference_interval(other, sample.moments(), sample.design, RESAMPLES)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)


def coverage(split: Split, n_active: int, n_silent: int, n_samples: int) -> tuple[float, float]:
    """How often the plain bootstrap and the guarded interval hold the split's correlation."""
    rng = np.random.default_rng(0)
    plain_holds = guarded_holds = 0
    for _ in range(n_samples):
        sample = split.sample(rng, n_active, n_silent)
        moments = sample.moments()
        plain, _ = intervals._resampled(moments, sample.design, RESAMPLES)
        low, high = np.nanquantile(plain, [0.025, 0.975])
        plain_holds += bool(low <= split.correlation <= high)
        found = guarded_interval(moments, sample.design, RESAMPLES)
        guarded_holds += bool(found.low <= split.correlation <= found.high)
    return plain_holds / n_samples, guarded_holds / n_samples


def test_with_few_silent_windows_only_the_guarded_interval_covers(split: Split) -> None:
    plain, guarded = coverage(split, n_active=60, n_silent=20, n_samples=150)
    assert plain < 0.7
    assert guarded >= 0.93


def test_with_many_silent_windows_the_guarded_interval_covers(split: Split) -> None:
    _, guarded = coverage(split, n_active=60, n_silent=1000, n_samples=150)
    assert guarded >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("false_share", [0.0005, 0.005, 0.02])
@pytest.mark.parametrize("n_silent", [20, 100, 500, 2000])
@pytest.mark.parametrize(("n_active", "least"), [(60, 0.93), (30, 0.92), (10, 0.88)])
def test_coverage_over_the_grid(
    false_share: float, n_silent: int, n_active: int, least: float
) -> None:
    split = Split(seed=2, false_share=false_share)
    _, guarded = coverage(split, n_active, n_silent, n_samples=400)
    assert guarded >= least
