"""How well positives and negatives are told apart, and how far that may be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.agreement import (
    NO_NEGATIVE,
    NO_POSITIVE,
    TOO_FEW_DOCUMENTS,
    Agreement,
    Judged,
    auroc,
    balanced_accuracy,
    correct_for_chance,
    mean_answer,
)
from scopenote.evaluate.intervals import N_GROUPS, draw_resamples

RESAMPLES = draw_resamples(seed=5, n_resamples=400)


def judged(values: list[float], first_document: int = 0, per_document: int = 1) -> Judged:
    documents = first_document + np.arange(len(values)) // per_document
    return Judged(np.array(values, np.float64), documents)


def figures(positives: Judged, negatives: Judged) -> tuple[Agreement, Agreement]:
    return auroc(positives, negatives, RESAMPLES), balanced_accuracy(
        positives, negatives, RESAMPLES
    )


def test_saying_no_to_four_positives_and_ten_negatives_is_chance() -> None:
    positives, negatives = judged([0.0] * 4), judged([0.0] * 10, 100)
    plain = (0 + 10) / 14
    assert plain == pytest.approx(0.714, abs=1e-3)
    balanced = balanced_accuracy(positives, negatives, RESAMPLES)
    assert balanced.value == 0.5
    assert correct_for_chance(balanced).value == 0.0
    assert auroc(positives, negatives, RESAMPLES).value == 0.5


@pytest.mark.parametrize("answer", [0.0, 0.2, 0.5, 1.0])
def test_one_answer_to_all_windows_is_chance(answer: float) -> None:
    area, balanced = figures(judged([answer] * 8), judged([answer] * 20, 50))
    assert area.value == 0.5
    assert correct_for_chance(balanced).value == 0.0


LEVELS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=12)


@given(LEVELS, LEVELS)
def test_the_area_counts_pairs_and_ties_half(yes: list[float], no: list[float]) -> None:
    pairs = [(p > n) + (p == n) / 2 for p in yes for n in no]
    area, balanced = figures(judged(yes), judged(no, 200))
    assert area.value == pytest.approx(sum(pairs) / len(pairs))
    mirrored, _ = figures(judged([1 - p for p in yes]), judged([1 - n for n in no], 200))
    assert mirrored.value == pytest.approx(1 - area.value)
    half = {0.5: 0.5}
    right = [half.get(p, float(p > 0.5)) for p in yes], [half.get(n, float(n < 0.5)) for n in no]
    assert balanced.value == pytest.approx((np.mean(right[0]) + np.mean(right[1])) / 2)


@given(st.integers(0, 1000))
def test_intervals_hold_the_value_and_lie_within_the_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positives = judged(rng.choice([0.1, 0.5, 0.9], 20).tolist(), per_document=2)
    negatives = judged(rng.random(15).tolist(), 5)  # some documents have both
    for found in figures(positives, negatives):
        assert 0 <= found.interval.low <= found.value <= found.interval.high <= 1
        corrected = correct_for_chance(found)
        assert -1 <= corrected.interval.low <= corrected.value <= corrected.interval.high <= 1
        assert corrected.interval.low == pytest.approx(2 * found.interval.low - 1)


def test_resampling_agrees_with_the_slow_obvious_way() -> None:
    rng = np.random.default_rng(1)
    positives = judged(rng.random(12).round(1).tolist(), per_document=2)
    negatives = judged(rng.random(9).round(1).tolist(), 3 + N_GROUPS)  # of groups 3 to 11
    lower: dict[str, list[float]] = {"area": [], "balanced": []}
    for b in range(len(RESAMPLES)):
        weights = [
            RESAMPLES.count[each.document % N_GROUPS, b].tolist() for each in (positives, negatives)
        ]
        # The pseudo-positive ranks below all, the pseudo-negative above all.
        p = [*positives.probability.tolist(), -1.0]
        n = [*negatives.probability.tolist(), 2.0]
        wp = [*weights[0], RESAMPLES.pseudo_weight[b]]
        wn = [*weights[1], RESAMPLES.pseudo_weight[b - 1]]
        won = sum(
            u * v * ((x > y) + (x == y) / 2)
            for x, u in zip(p, wp, strict=True)
            for y, v in zip(n, wn, strict=True)
        )
        lower["area"].append(won / (sum(wp) * sum(wn)))
        yes = sum(u * ((x > 0.5) + (x == 0.5) / 2) for x, u in zip(p, wp, strict=True)) / sum(wp)
        no = sum(v * ((y < 0.5) + (y == 0.5) / 2) for y, v in zip(n, wn, strict=True)) / sum(wn)
        lower["balanced"].append((yes + no) / 2)
    for found, name in zip(figures(positives, negatives), lower, strict=True):
        assert found.interval.low == pytest.approx(float(np.quantile(lower[name], 0.025)))


def test_a_perfect_separation_of_few_windows_has_no_certain_lower_limit() -> None:
    for n, most in ((8, 0.75), (30, 0.93), (400, 0.995)):
        for found in figures(judged([1.0] * n), judged([0.0] * n, 5000)):
            assert found.value == found.interval.high == 1
            assert found.interval.low < most
    few, many = (
        figures(judged([1.0] * n), judged([0.0] * n, 5000))[0].interval.low for n in (8, 60)
    )
    assert few < many


def test_windows_of_one_document_are_worth_less_than_those_of_many() -> None:
    answers = [1.0, 1.0, 1.0, 0.0] * 10
    widths = []
    for per_document in (1, 4):
        positives = judged(sorted(answers), per_document=per_document)
        found = auroc(positives, judged([0.0] * 40, 5000), RESAMPLES)
        widths.append(found.interval.high - found.interval.low)
    assert widths[0] < widths[1]


def test_too_few_documents_have_no_interval_and_say_so() -> None:
    few = judged([1.0] * 12, per_document=4)
    for found in (*figures(few, judged([0.0] * 12, 50)), *figures(judged([1.0] * 12, 50), few)):
        assert found.interval is None
        assert found.value is not None
        assert found.interval_reason == TOO_FEW_DOCUMENTS
        assert correct_for_chance(found).interval_reason == TOO_FEW_DOCUMENTS


def test_without_answers_of_either_kind_nothing_is_defined() -> None:
    some, none = judged([1.0] * 8), judged([])
    for found in figures(none, some):
        assert (found.value, found.reason) == (None, NO_POSITIVE)
        assert correct_for_chance(found) == found
    for found in figures(some, none):
        assert (found.value, found.reason) == (None, NO_NEGATIVE)
    assert mean_answer(none, RESAMPLES).value is None


def test_the_mean_answer_is_guarded_on_both_sides() -> None:
    found = mean_answer(judged([1.0] * 10), RESAMPLES)
    assert (found.value, found.interval.high) == (1.0, 1.0)
    # Clopper and Pearson: none of ten wrong, so at most 31% are.
    assert found.interval.low == pytest.approx(0.69, abs=0.06)
    assert mean_answer(judged([0.0] * 10), RESAMPLES).interval.high > 0.2
    assert correct_for_chance(mean_answer(judged([0.2] * 10), RESAMPLES), 0.2).value == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("n", "per_document", "distance"), [(6, 1, 1.0), (30, 3, 0.8), (30, 1, 3)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    n: int, per_document: int, distance: float
) -> None:
    from statistics import NormalDist

    rng = np.random.default_rng(0)
    held = {"area": 0, "balanced": 0}
    truth = (NormalDist().cdf(distance / 2**0.5), NormalDist().cdf(distance / 2))
    n_trials = 400
    for _ in range(n_trials):
        sides = []
        for shift in (distance / 2, -distance / 2):
            document = rng.permutation(N_GROUPS)[: n // per_document].repeat(per_document)
            shared = 0.6 * (per_document > 1)
            of_document = rng.normal(0, shared**0.5, N_GROUPS)
            x = shift + of_document[document] + rng.normal(0, (1 - shared) ** 0.5, n)
            sides.append(Judged(1 / (1 + np.exp(-x)), document))
        for found, true, name in zip(figures(*sides), truth, held, strict=True):
            held[name] += found.interval.low <= true <= found.interval.high
    assert min(held.values()) / n_trials > 0.94
