"""Whether the right tokens are marked, told from the label; what is wrong is marked as often."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scopenote.evaluate.exam_figures import METRICS
from scopenote.evaluate.fuzzing import fuzz, mark
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.window_exams import Exam, JudgeSettings, lay_out_exam
from scopenote.label.chat import ChatRequest
from scopenote.store.records import Score

from .planted_feature import make_stratum
from .scripted_judge import (
    LABEL,
    Answer,
    T,
    asker,
    by_rule,
    contexts,
    near_misses,
    windows_in,
)

RESAMPLES = draw_resamples(seed=2, n_resamples=200)


def rows(answer: Answer, asked: list[ChatRequest] | None = None) -> list[Score]:
    explain, score = contexts()
    judge = asker(answer, asked)
    return fuzz(LABEL, explain, score, near_misses(), judge, RESAMPLES, JudgeSettings())


def values(scores: list[Score]) -> dict[str, float | None]:
    return {each.metric: each.value for each in scores}


def test_a_judge_that_reads_the_marks_is_right_and_one_that_does_not_is_at_chance() -> None:
    scores = rows(by_rule(lambda text: "⟪ lion⟫" in text))
    assert values(scores) == dict.fromkeys(METRICS, 1.0)
    assert {each.scorer for each in scores} == {"fuzzing"}
    for always in (True, False):
        found = values(rows(by_rule(lambda text, always=always: always)))
        for kind in ("random", "near_miss"):
            assert found[f"chance_corrected_{kind}"] == 0
            assert found[f"auroc_{kind}"] == 0.5


def test_every_window_is_marked_and_the_number_of_marks_tells_nothing() -> None:
    asked: list[ChatRequest] = []
    rows(by_rule(lambda text: True), asked)
    texts = [text for each in asked for text in windows_in(each)]
    assert len(texts) == 90
    assert {len(re.findall("⟪[^⟪⟫]+⟫", text)) for text in texts} == {1}


def ragged_exam(seed: int, shortest: int) -> tuple[Exam, np.ndarray]:
    """Twelve positives of three to eight tokens, active at one to three; negatives at least as
    long as this, of which there are fewer random ones and more near misses."""
    rng = np.random.default_rng(seed)

    def texts(n: int, least: int) -> list[list[int]]:
        return [rng.integers(4, 24, rng.integers(least, T + 1)).tolist() for _ in range(n)]

    positives = texts(12, 3)
    truth = [np.zeros(len(text)) for text in positives]
    for row in truth:
        row[rng.choice(len(row), rng.integers(1, 4), False)] = 2.0
    active = make_stratum(positives, truth, first_id=100, n_tokens=T)
    silent = make_stratum(texts(12, shortest), first_id=500, n_tokens=T)
    near = make_stratum(texts(20, shortest), first_id=900, n_tokens=T).windows
    _, score = contexts()
    exam = lay_out_exam(replace(score, active=active, silent=silent), near, 20)
    is_active = active.activations > 0
    return mark(exam, is_active), is_active


def places(marked: np.ndarray) -> Counter[tuple[int, ...]]:
    return Counter(tuple(np.flatnonzero(row).tolist()) for row in marked)


@pytest.mark.parametrize("seed", range(4))
def test_marks_of_negatives_are_those_of_the_positives_one_by_one(seed: int) -> None:
    exam, is_active = ragged_exam(seed, shortest=T)
    assert (exam.marked[exam.positives] == is_active).all()
    assert places(exam.marked[exam.negatives["random"]]) == places(is_active)
    # A kind with more windows than there are positives has their marks again.
    near = places(exam.marked[exam.negatives["near_miss"]])
    assert set(near) == set(places(is_active))
    assert near.total() == 20


def test_windows_of_several_lengths_have_whole_marks_wherever_any_order_gives_them() -> None:
    fitted = 0
    for seed in range(40):
        exam, is_active = ragged_exam(seed, shortest=4)
        random = exam.negatives["random"]
        length = sorted(exam.windows.is_token[random].sum(axis=1).tolist())
        reach = sorted(T - np.argmax(is_active[:, ::-1], axis=1))
        if all(n >= r for n, r in zip(length, reach, strict=True)):
            fitted += 1
            assert places(exam.marked[random]) == places(is_active)
    assert 5 < fitted < 40


@pytest.mark.parametrize("seed", range(4))
def test_marks_beyond_the_end_of_a_short_window_are_at_its_last_token(seed: int) -> None:
    exam, is_active = ragged_exam(seed, shortest=1)
    for rows_of_kind in exam.negatives.values():
        marked, is_token = exam.marked[rows_of_kind], exam.windows.is_token[rows_of_kind]
        assert not (marked & ~is_token).any()
        assert marked.any(axis=1).all()
    n_marks = sorted(exam.marked[exam.negatives["random"]].sum(axis=1).tolist())
    most = sorted(is_active.sum(axis=1).tolist())
    assert all(n <= m for n, m in zip(n_marks, most, strict=True))


def test_a_window_of_both_kinds_has_one_marking_and_either_kind_those_of_all_positives() -> None:
    _, score = contexts(n_active=30, n_silent=60)
    is_active = np.zeros((30, T), bool)
    for row in range(30):
        is_active[row, [row % 8, (row % 8 + row // 8 + 1) % 8]] = True
    assert len(places(is_active)) > 20
    shared = score.silent.windows.take(np.arange(20, 50))
    exam = mark(lay_out_exam(score, shared, 30), is_active)
    assert len(exam.windows) == 30 + 50
    for rows_of_kind in exam.negatives.values():
        assert places(exam.marked[rows_of_kind]) == places(is_active)


def test_the_null_is_what_the_token_lookup_expects_at_the_marks() -> None:
    for each in rows(by_rule(lambda text: True)):
        is_area = each.metric.startswith("auroc")
        assert (each.null_value, each.lift) == ((1.0, -0.5) if is_area else (None, None))


def test_a_feature_that_never_fires_has_nothing_marked_and_no_score() -> None:
    explain, score = contexts(n_active=0)
    near = near_misses()
    judge = asker(by_rule(lambda text: False))
    found = fuzz(LABEL, explain, score, near, judge, RESAMPLES, JudgeSettings())
    assert {each.value for each in found} == {None}
