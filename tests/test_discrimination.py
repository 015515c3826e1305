"""A label told from those of near neighbours, wherever it stands, and where that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scopenote.evaluate.discrimination import (
    FEWEST,
    METRICS,
    NO_RIVAL,
    SAYS_THE_SAME,
    discriminate,
    own_windows,
)
from scopenote.evaluate.exam_figures import NEVER_ACTIVE
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.window_exams import JudgeSettings
from scopenote.evaluate.window_questions import NO_ANSWER
from scopenote.label.chat import ChatRequest
from scopenote.store.errors import ScopenoteError
from scopenote.store.records import Score
from scopenote.store.rival_labels import RivalLabel, Rivals

from .scripted_judge import LABEL, Answer, asker, contexts, stratum, windows_in

RESAMPLES = draw_resamples(seed=2, n_resamples=200)
NONE = np.empty(0, np.uint64)
TEXTS = ("tigers", "bears", "animals", "zoos")


def rivals(*texts: str) -> Rivals:
    labels = [RivalLabel(20 + i, 0.9 - i / 10, text, "highlighted") for i, text in enumerate(texts)]
    return Rivals(tuple(labels), NONE, NONE)


def labels_in(request: ChatRequest) -> list[str]:
    shown = request.messages[1].content.split("⟦end of labels⟧")[0]
    return [part.split("⟧\n")[1].strip() for part in shown.split("⟦label ")[1:]]


def chooses(text: str) -> Answer:
    return lambda request: f"1\t{labels_in(request).index(text) + 1}"


def rows(
    answer: Answer,
    against: Rivals | None = None,
    asked: list[ChatRequest] | None = None,
    **settings: int,
) -> list[Score]:
    explain, score = contexts()
    return discriminate(
        LABEL,
        explain,
        score,
        rivals(*TEXTS) if against is None else against,
        asker(answer, asked),
        RESAMPLES,
        JudgeSettings(**settings),
    )


def values(scores: list[Score]) -> list[float | None]:
    assert [each.metric for each in scores] == list(METRICS)
    return [each.value for each in scores]


def test_a_judge_that_takes_the_right_label_is_right_and_another_never() -> None:
    scores = rows(chooses("lions"))
    assert values(scores) == [1, 1, 1]
    assert all(each.ci_low < 1 == each.ci_high for each in scores)
    accuracy, corrected, probability = values(rows(chooses("animals")))
    assert (accuracy, corrected, probability) == (0, pytest.approx(-0.25), 0)
    for each in scores:
        assert (each.scorer, each.n_windows) == ("discrimination", 30)
        assert each.design["n_labels"] == 5
        assert each.design["neighbours"] == [20, 21, 22, 23]
        json.dumps(each.design, allow_nan=False)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_judge_with_a_liking_for_a_place_is_at_chance(number: int) -> None:
    accuracy, corrected, probability = values(rows(lambda request: f"1\t{number}"))
    assert (accuracy, probability) == (pytest.approx(0.2), pytest.approx(0.2))
    assert corrected == pytest.approx(0)


def test_each_window_is_asked_about_alone_with_its_active_tokens_marked() -> None:
    asked: list[ChatRequest] = []
    rows(chooses("lions"), asked=asked)
    assert len(asked) == 30
    shown = [windows_in(each) for each in asked]
    assert all(len(texts) == 1 and "⟪ lion⟫" in texts[0] for texts in shown)
    assert all(sorted(labels_in(each)) == sorted(["lions", *TEXTS]) for each in asked)
    orders = {tuple(labels_in(each)) for each in asked}
    assert len(orders) == 5
    again: list[ChatRequest] = []
    rows(chooses("lions"), asked=again, seed=3)
    assert {tuple(labels_in(each)) for each in again} != orders


def test_log_probabilities_give_the_mean_probability_of_the_right_label() -> None:
    def unsure(request: ChatRequest) -> dict:
        right = labels_in(request).index("lions") + 1
        other = 1 + right % 5
        options = [[right, np.log(0.6)], [other, np.log(0.2)], [9, np.log(0.2)]]
        return {"text": f"1\t{right}", "logprobs": [[2, options]]}

    scores = rows(unsure)
    assert values(scores) == [1, 1, pytest.approx(0.75)]
    assert scores[0].design["captured_mass"] == pytest.approx(0.8)


def test_labels_of_one_probability_share_the_window() -> None:
    def torn(request: ChatRequest) -> dict:
        right = labels_in(request).index("lions") + 1
        options = [[right, np.log(0.5)], [1 + right % 5, np.log(0.5)]]
        return {"text": f"1\t{right}", "logprobs": [[2, options]]}

    assert values(rows(torn)) == [0.5, pytest.approx(0.375), 0.5]


def test_two_labels_have_a_chance_of_a_half() -> None:
    scores = rows(chooses("tigers"), rivals("tigers"))
    assert values(scores) == [0, -1, 0]


@pytest.mark.parametrize("same", ["lions", "  LIONS ", "the lion"])
def test_labels_that_say_the_same_collide_and_are_not_told_apart(same: str) -> None:
    asked: list[ChatRequest] = []
    scores = rows(chooses("lions"), rivals("tigers", same), asked)
    assert values(scores) == [None] * 3
    assert {each.reason for each in scores} == {SAYS_THE_SAME}
    assert not asked


def test_without_a_labelled_neighbour_or_a_label_there_is_nothing_to_tell() -> None:
    explain, score = contexts()
    judge, settings = asker(chooses("lions")), JudgeSettings()
    for none in (None, rivals()):
        found = discriminate(LABEL, explain, score, none, judge, RESAMPLES, settings)
        assert {(each.value, each.reason) for each in found} == {(None, NO_RIVAL)}
    failed = replace(LABEL, text=None, status="failed", reason="too long")
    found = discriminate(failed, explain, score, rivals("x"), judge, RESAMPLES, settings)
    assert {(each.value, each.reason) for each in found} == {(None, "too long")}


def test_windows_where_a_neighbour_fires_are_left_out_and_known_ones_come_first() -> None:
    _, score = contexts()
    hashes = score.active.windows.token_hash
    against = replace(rivals(*TEXTS), apart=hashes[[7, 3]], shared=hashes[[0, 5]])
    own = own_windows(score.active, against, 30)
    rest = [row for row in range(30) if row not in (0, 3, 5, 7)]
    assert own.stratum.windows.token_hash.tolist() == hashes[[3, 7, *rest]].tolist()
    assert own.n_apart == 2
    assert own_windows(score.active, against, 1).n_apart == 1
    scores = rows(chooses("lions"), against)
    assert (scores[0].n_windows, scores[0].design["n_apart"]) == (28, 2)


def test_windows_that_a_neighbour_shares_are_taken_where_there_are_hardly_others() -> None:
    _, score = contexts()
    hashes = score.active.windows.token_hash
    for n_others in (FEWEST, FEWEST - 1, 0):
        against = replace(rivals(*TEXTS), apart=hashes[:2][:n_others], shared=hashes[n_others:])
        own = own_windows(score.active, against, 30)
        n_shared = 0 if n_others == FEWEST else 30 - n_others
        assert (len(own.stratum), own.n_shared) == (n_others + n_shared, n_shared)
        assert own.n_apart == min(2, n_others)
        scores = rows(chooses("lions"), against)
        assert values(scores) == [1, 1, 1]
        assert scores[0].design["n_shared"] == n_shared


def test_a_feature_that_never_fires_has_nothing_to_be_told_by() -> None:
    explain, score = contexts(n_active=0)
    judge = asker(chooses("lions"))
    found = discriminate(LABEL, explain, score, rivals("x"), judge, RESAMPLES, JudgeSettings())
    assert {(each.value, each.reason) for each in found} == {(None, NEVER_ACTIVE)}


def test_windows_without_an_answer_are_left_out_and_counted() -> None:
    def sometimes(request: ChatRequest) -> str:
        return "hm" if " word3" in windows_in(request)[0] else chooses("lions")(request)

    scores = rows(sometimes)
    n_failed = scores[0].design["failed"][NO_ANSWER]
    assert values(scores) == [1, 1, 1]
    assert scores[0].n_windows == 30 - n_failed < 30
    nothing = rows(lambda request: "hm")
    assert values(nothing) == [None] * 3
    assert all(each.reason.endswith(NO_ANSWER) for each in nothing)


def test_text_that_the_label_was_written_from_is_refused() -> None:
    explain, score = contexts()
    seen = replace(explain, active=stratum(3, [1], True, 30_000))
    with pytest.raises(ScopenoteError, match="among those that the label was written from"):
        discriminate(
            LABEL, seen, score, rivals("x"), asker(chooses("lions")), RESAMPLES, JudgeSettings()
        )
