"""Intervals of a correlation: what they are made of, and how often they hold the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from scopenote.evaluate.resampling import resample
from scopenote.evaluate.screening import FirstPhase, silent_weights

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
        is_suspect = None if self.design.is_suspect is None else self.design.is_suspect[rows]
        design = replace(
            self.design,
            document=self.design.document[rows],
            is_silent=self.design.is_silent[rows],
            is_suspect=is_suspect,
        )
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
        self.copies = rng.integers(1, 4, n).astype(np.float64)
        self.fires = np.where(false, rng.random(n) < 0.7, rng.random(n) < 0.05)
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


@dataclass
class Part:
    """Windows of a stratum as one resample draws them."""

    predicted: np.ndarray
    truth: np.ndarray
    weight: np.ndarray

    def with_pseudo(self, predicted: np.ndarray, truth: np.ndarray, weight: float) -> Part:
        return Part(
            np.vstack([self.predicted, predicted]),
            np.vstack([self.truth, truth]),
            np.append(self.weight, weight),
        )

    def weigh(self, population: float) -> np.ndarray:
        """Of every token."""
        return np.repeat(self.weight * population / self.weight.sum(), T)


def resample_slowly(sample: Sample, resamples: Resamples, guarded: bool) -> np.ndarray:
    """One resample after the other, token by token, in float64."""
    return np.array([one_slowly(sample, resamples, guarded, b) for b in range(len(resamples))])


def one_slowly(sample: Sample, resamples: Resamples, guarded: bool, b: int) -> float:
    design, count = sample.design, resamples.count[:, b]
    is_active, is_silent = ~design.is_silent, design.is_silent
    strata = [(is_active, sample.weight[is_active].sum())]
    n_silent = sample.weight[is_silent].sum()
    if design.screened is None:
        strata += [(is_silent, n_silent)]
    else:
        drawn = design.screened.weight * count[design.screened.document % N_GROUPS]
        share = drawn[design.screened.is_suspect].sum() / drawn.sum()
        others = is_silent & ~design.is_suspect
        strata += [(others, (1 - share) * n_silent), (design.is_suspect, share * n_silent)]

    parts, weights = [], []
    active = np.flatnonzero(is_active)
    silence = np.average(sample.predicted[is_silent].mean(axis=1), weights=sample.weight[is_silent])
    for number, (rows, population) in enumerate(strata):
        counted = sample.weight[rows] * count[design.document[rows] % N_GROUPS]
        part = Part(sample.predicted[rows], sample.truth[rows], counted)
        if guarded:
            # Each stratum takes its random numbers from another resample.
            other = b - (2, 0, 1)[number]
            one = resamples.pseudo_weight[other] * sample.weight[rows].mean()
            picked = active[int(resamples.pseudo_pick[other] * len(active))]
            missed = np.full(T, silence), sample.truth[picked]
            false = sample.predicted[picked], np.zeros(T)
            part = part.with_pseudo(*(false if number else missed), one)
        parts.append(part)
        weights.append(part.weigh(population))
    w = np.concatenate(weights)
    p = np.concatenate([part.predicted.astype(np.float64).ravel() for part in parts])
    t = np.concatenate([part.truth.astype(np.float64).ravel() for part in parts])
    p, t = p - np.average(p, weights=w), t - np.average(t, weights=w)
    variances = np.average(p * p, weights=w) * np.average(t * t, weights=w)
    return float(np.average(p * t, weights=w) / variances**0.5)


def test_resampling_agrees_with_the_slow_obvious_way(split: Split) -> None:
    resamples = draw_resamples(seed=3, n_resamples=100)
    sample = sample_of(split, seed=2)
    found = resample(sample.moments(), sample.design, resamples)
    plain, guarded = (resample_slowly(sample, resamples, guarded) for guarded in (False, True))
    assert found.plain == pytest.approx(plain, abs=1e-5)
    assert found.guarded == pytest.approx(guarded, abs=1e-5)


def screened_sample(split: Split, seed: int, n_rated: tuple[int, int] = (30, 60)) -> Sample:
    """Forty active windows and, of a thousand that were screened, so many suspects and others."""
    rng = np.random.default_rng(seed)
    pool = rng.choice(np.flatnonzero(~split.is_active), 1000, False)
    fires = split.fires[pool]
    first = FirstPhase(split.document[pool], split.copies[pool], fires)
    active = rng.choice(np.flatnonzero(split.is_active), 40, False)
    suspects, others = pool[fires][: n_rated[0]], pool[~fires][: n_rated[1]]
    rows = np.concatenate([active, suspects, others])
    place = np.arange(len(rows))
    is_suspect = (place >= 40) & (place < 40 + len(suspects))
    n_active, n_silent = split.is_active.sum(), (~split.is_active).sum()
    of_silent = silent_weights(split.copies[rows[40:]], is_suspect[40:], first, float(n_silent))
    weight = np.concatenate([np.full(40, n_active / 40), of_silent])
    design = Design(split.document[rows], place >= 40, is_suspect, first)
    return Sample(split.predicted[rows], split.truth[rows], weight, design)


def test_resampling_both_phases_agrees_with_the_slow_obvious_way(split: Split) -> None:
    resamples = draw_resamples(seed=4, n_resamples=100)
    sample = screened_sample(split, seed=2)
    found = resample(sample.moments(), sample.design, resamples)
    plain, guarded = (resample_slowly(sample, resamples, guarded) for guarded in (False, True))
    assert found.plain == pytest.approx(plain, abs=1e-5)
    assert found.guarded == pytest.approx(guarded, abs=1e-5)


@pytest.mark.parametrize("fires", [False, True])
def test_a_screen_that_says_the_same_of_all_windows_changes_nothing(
    split: Split, fires: bool
) -> None:
    sample = sample_of(split, seed=13)
    is_silent = sample.design.is_silent
    first = FirstPhase(np.arange(5000), np.ones(5000), np.full(5000, fires))
    design = replace(sample.design, is_suspect=is_silent & fires, screened=first)
    silent = silent_weights(
        np.ones(200), np.full(200, fires), first, sample.weight[is_silent].sum()
    )
    assert silent == pytest.approx(sample.weight[is_silent])
    found = guarded_interval(sample.moments(), design, RESAMPLES)
    plain = guarded_interval(sample.moments(), sample.design, RESAMPLES)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_neither_phase_depends_on_the_order_of_its_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = screened_sample(SMALL, seed)
    found = guarded_interval(sample.moments(), sample.design, RESAMPLES)
    rows = np.arange(len(sample.weight))
    rows[40:] = rng.permutation(rows[40:])
    again, first = sample.take(rows), sample.design.screened
    order = rng.permutation(len(first.weight))
    first = FirstPhase(first.document[order], first.weight[order], first.is_suspect[order])
    other = guarded_interval(again.moments(), replace(again.design, screened=first), RESAMPLES)
    assert (other.low, other.high) == pytest.approx((found.low, found.high), abs=1e-4)


def test_a_screen_with_one_part_only_is_refused(split: Split) -> None:
    design = screened_sample(split, seed=6).design
    with pytest.raises(ValueError, match="together"):
        replace(design, screened=None)
    with pytest.raises(ValueError, match="together"):
        replace(design, is_suspect=None)


def test_an_active_window_is_no_suspect(split: Split) -> None:
    design = screened_sample(split, seed=6).design
    with pytest.raises(ValueError, match="active one is a suspect"):
        replace(design, is_suspect=~design.is_suspect)


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
    plain = resample(moments, sample.design, RESAMPLES).plain
    guarded = guarded_interval(moments, sample.design, RESAMPLES)
    assert guarded.low < np.quantile(plain, 0.001) - 0.2
    assert guarded.high <= plain.max()


def test_few_active_windows_without_a_miss_do_not_prove_there_are_none(split: Split) -> None:
    sample = sample_of(split, seed=3, n_active=12, n_silent=2000)
    right = sample.moments(sample.truth)
    assert resample(right, sample.design, RESAMPLES).plain == pytest.approx(1, abs=1e-5)
    found = guarded_interval(right, sample.design, RESAMPLES)
    assert found.low < 0.9
    assert found.high == pytest.approx(1)


def test_the_more_active_windows_without_a_miss_the_fewer_there_may_be(split: Split) -> None:
    lows = []
    for n_active in (12, 60, 240):
        sample = sample_of(split, seed=3, n_active=n_active, n_silent=2000)
        found = guarded_interval(sample.moments(sample.truth), sample.design, RESAMPLES)
        lows.append(found.low)
    assert lows[0] < lows[1] < lows[2]


def test_more_silent_windows_make_the_interval_narrower(split: Split) -> None:
    widths = []
    for n_silent in (20, 200, 2000):
        sample = sample_of(split, seed=5, n_active=60, n_silent=n_silent)
        found = guarded_interval(sample.moments(), sample.design, RESAMPLES)
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_a_split_without_silence_needs_no_guard(split: Split) -> None:
    sample = sample_of(split, seed=6).take(np.arange(40))
    found = resample(sample.moments(), sample.design, RESAMPLES)
    assert np.array_equal(found.plain, found.guarded)
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
    plain = resample(sample.moments(), sample.design, RESAMPLES).plain
    assert np.isnan(plain).any()
    found = guarded_interval(sample.moments(), sample.design, RESAMPLES)
    assert np.isfinite([found.low, found.high]).all()


def test_predictions_alike_in_all_that_was_seen_may_differ_in_what_was_not(split: Split) -> None:
    widths = []
    for n_silent in (20, 200, 2000):
        moments = (sample := sample_of(split, seed=10, n_silent=n_silent)).moments()
        found = difference_interval(moments, moments, sample.design, RESAMPLES)
        assert found.low == pytest.approx(-found.high)
        widths.append(found.high)
    assert widths[0] > widths[1] > widths[2] > 0


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
