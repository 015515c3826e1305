"""Which windows a feature fires in, told from its label: against random windows and near ones."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scopenote.evaluate.detection import detect
from scopenote.evaluate.exam_figures import METRICS, NEVER_ACTIVE, NEVER_SILENT, NO_NEAR_MISS
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.window_exams import JudgeSettings, lay_out_exam
from scopenote.evaluate.window_questions import NO_ANSWER, Asker
from scopenote.label.chat import ChatRequest
from scopenote.label.labelling import DECLINED
from scopenote.store.errors import ScopenoteError
from scopenote.store.near_misses import NearMisses
from scopenote.store.records import Label, Score

from .planted_feature import make_contexts, make_stratum
from .scripted_judge import (
    ANIMALS,
    LABEL,
    Answer,
    T,
    asker,
    by_rule,
    contexts,
    near_misses,
    stratum,
    windows_in,
)

RESAMPLES = draw_resamples(seed=2, n_resamples=200)
SETTINGS = JudgeSettings()

lions = by_rule(lambda text: " lion" in text)
animals = by_rule(lambda text: any(animal in text for animal in ANIMALS))


def rows(
    judge: Asker | Answer, label: Label = LABEL, near: NearMisses | None = None
) -> list[Score]:
    explain, score = contexts()
    if not isinstance(judge, Asker):
        judge = asker(judge)
    near = near_misses() if near is None else near
    return detect(label, explain, score, near, judge, RESAMPLES, SETTINGS)


def values(scores: list[Score]) -> dict[str, float | None]:
    return {each.metric: each.value for each in scores}


def test_an_ideal_judge_separates_positives_from_all_negatives() -> None:
    scores = rows(lions)
    assert values(scores) == dict.fromkeys(METRICS, 1.0)
    for each in scores:
        assert (each.scorer, each.simulator, each.split) == ("detection", "chat/m", "score")
        assert each.ci_low < each.ci_high == 1
        assert each.n_windows == 60
        assert (each.design["n_positive"], each.design["n_negative"]) == (30, 30)
        json.dumps(each.design, allow_nan=False)


def test_a_judge_of_the_topic_alone_passes_random_windows_and_fails_near_misses() -> None:
    found = values(rows(animals))
    assert found["auroc_random"] == found["balanced_accuracy_random"] == 1
    assert found["auroc_near_miss"] == found["balanced_accuracy_near_miss"] == 0.5
    assert found["chance_corrected_near_miss"] == 0


@pytest.mark.parametrize("always", [True, False])
def test_a_judge_with_one_answer_to_everything_is_at_chance(always: bool) -> None:
    found = values(rows(by_rule(lambda text: always)))
    for metric in METRICS:
        assert found[metric] == (0 if metric.startswith("chance_corrected") else 0.5)


def test_windows_of_all_kinds_come_mixed_each_once_and_in_an_order_of_the_seed() -> None:
    def asked_about(settings: JudgeSettings) -> list[list[str]]:
        asked: list[ChatRequest] = []
        explain, score = contexts()
        detect(LABEL, explain, score, near_misses(), asker(lions, asked), RESAMPLES, settings)
        return [windows_in(each) for each in asked]

    calls = asked_about(SETTINGS)
    texts = [text for call in calls for text in call]
    assert len(texts) == len(set(texts)) == 90
    assert {len(call) for call in calls} <= {7, 8}
    of_kind = [
        "lion" if "lion" in t else "near" if "tiger" in t or "bear" in t else "" for t in texts
    ]
    for begin in range(0, 90, 30):
        assert len(set(of_kind[begin : begin + 30])) == 3
    assert sum(len({"lion" in text for text in call}) == 2 for call in calls) >= len(calls) - 2
    assert calls == asked_about(SETTINGS)
    assert calls != asked_about(JudgeSettings(seed=1))


def test_nothing_is_marked_and_nothing_before_a_window_is_shown() -> None:
    asked: list[ChatRequest] = []
    rows(asker(lions, asked))
    assert all("⟪" not in each.messages[1].content for each in asked)
    assert all(each.messages[1].content.startswith("⟦label⟧\nlions\n") for each in asked)


def test_a_window_that_is_random_and_a_near_miss_is_asked_about_once_for_both() -> None:
    _, score = contexts()
    shared = score.silent.windows.take(np.arange(5, 45) % 40)
    exam = lay_out_exam(score, shared, 30)
    assert len(exam.windows) == 30 + 35
    names = exam.windows.window_id
    assert names[exam.negatives["near_miss"]].tolist() == shared.window_id[:30].tolist()
    assert names[exam.negatives["random"]].tolist() == score.silent.windows.window_id[:30].tolist()
    assert names[exam.positives].tolist() == score.active.windows.window_id[:30].tolist()
    assert len(set(names.tolist())) == len(names)


def test_probabilities_are_of_the_log_probabilities_where_there_are_any() -> None:
    def unsure(request: ChatRequest) -> dict:
        """Says 0 of everything, and of lions with less conviction."""
        lines, options, at = "", [], 0
        for number, text in enumerate(windows_in(request), start=1):
            head = f"{number}\t"
            yes = 0.4 if " lion" in text else 0.1
            options.append([at + len(head), [[0, np.log(1 - yes)], [1, np.log(yes)]]])
            lines += f"{head}0\n"
            at = len(lines)
        return {"text": lines, "logprobs": options}

    scores = rows(unsure)
    found = values(scores)
    assert found["auroc_random"] == found["auroc_near_miss"] == 1
    assert found["chance_corrected_random"] == 0
    assert {each.design["n_answered_by_logprobs"] for each in scores} == {60}
    assert {round(each.design["captured_mass"], 9) for each in scores} == {1.0}
    assert rows(lions)[0].design["n_answered_by_logprobs"] == 0


def test_windows_without_an_answer_are_left_out_and_counted_by_reason() -> None:
    def sometimes(request: ChatRequest) -> str:
        said = lions(request).splitlines()
        texts = windows_in(request)
        return "\n".join(s for s, t in zip(said, texts, strict=True) if " word3" not in t)

    _, score = contexts()
    exam = lay_out_exam(score, near_misses().windows, 30)
    lost = (exam.windows.token_ids == 7).any(axis=1)
    for each in rows(sometimes):
        kind = "near_miss" if each.metric.endswith("near_miss") else "random"
        n_lost = [int(lost[r].sum()) for r in (exam.positives, exam.negatives[kind])]
        assert min(n_lost) > 0
        assert each.value == 1
        assert each.design["failed_positive"] == {NO_ANSWER: n_lost[0]}
        assert each.design["failed_negative"] == {NO_ANSWER: n_lost[1]}
        assert each.n_windows == 60 - sum(n_lost)


def test_where_nothing_is_answered_nothing_is_scored_and_the_reason_is_said() -> None:
    for each in rows(lambda request: {"text": None, "refusal": "I cannot."}):
        assert each.value is None
        assert each.reason.endswith(f": {DECLINED}")
        assert each.design["failed_positive"] == {DECLINED: 30}
        assert (each.ci_low, each.ci_high, each.null_value, each.lift) == (None,) * 4


def test_without_near_misses_the_random_test_stands_alone() -> None:
    near = near_misses(0)
    scores = rows(lions, near=near)
    for each in scores:
        if each.metric.endswith("near_miss"):
            assert (each.value, each.reason) == (None, NO_NEAR_MISS)
        else:
            assert each.value == 1


def test_a_feature_without_windows_of_a_kind_has_no_score() -> None:
    explain, score = contexts()
    nothing = make_stratum([], n_tokens=T)
    for other, reason in (
        (replace(score, active=replace(nothing, population_windows=0)), NEVER_ACTIVE),
        (replace(score, silent=replace(nothing, population_windows=0)), NEVER_SILENT),
    ):
        found = detect(LABEL, explain, other, near_misses(), asker(lions), RESAMPLES, SETTINGS)
        assert (found[0].value, found[0].reason) == (None, reason)


def test_a_label_that_could_not_be_made_has_its_reason_in_every_row() -> None:
    asked: list[ChatRequest] = []
    failed = replace(LABEL, text=None, status="failed", reason="too long")
    scores = rows(asker(lions, asked), failed)
    assert [each.metric for each in scores] == list(METRICS)
    assert {(each.value, each.reason, each.lift_reason) for each in scores} == {
        (None, "too long", "too long")
    }
    assert not asked


def test_the_token_lookup_on_the_same_windows_is_the_null_of_the_area() -> None:
    scores = {each.metric: each for each in rows(by_rule(lambda text: True))}
    area = scores["auroc_random"]
    # The feature is one of its token: nothing does better than that.
    assert area.null_value == 1
    assert area.lift == -0.5
    assert scores["chance_corrected_random"].null_value is None
    assert scores["chance_corrected_random"].lift_reason


@pytest.mark.parametrize("where", ["active", "silent", "near"])
def test_text_that_the_label_was_written_from_is_refused(where: str) -> None:
    explain, score = contexts()
    seen = stratum(3, [2], False, 20_000)
    near = near_misses()
    if where == "near":
        near = NearMisses(seen.windows, np.zeros(3, np.int64))
    else:
        score = replace(score, **{where: seen})
    explain = make_contexts(explain.active, explain.silent, make_stratum([], n_tokens=T))
    with pytest.raises(ScopenoteError, match="among those that the label was written from"):
        detect(LABEL, explain, score, near, asker(lions), RESAMPLES, SETTINGS)
