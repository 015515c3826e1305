"""Detection: can a judge tell from the label in which windows the feature fires?

After Paulo et al. (2024, "Automatically interpreting millions of features in large language
models"), as two tests with the same positives: against windows drawn from all silent ones, and
against near misses, in which the feature is silent and a near neighbour of it fires. A label that
is too broad passes the first and fails the second. Left out: where in a window the feature fires,
which is what `fuzzing` asks.
"""

from __future__ import annotations

from ..label.token_lookup import fit_token_lookup
from ..store.near_misses import NearMisses
from ..store.records import FeatureContexts, Label, Score
from .exam_figures import METRICS, failed_rows, grade
from .intervals import Resamples
from .window_exams import (
    JudgeSettings,
    ask_blindly,
    lay_out_exam,
    require_unseen_windows,
)
from .window_questions import Asker

SCORER = "detection"
PROMPT = "detect_windows"


def detect(
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    near_misses: NearMisses,
    asker: Asker,
    resamples: Resamples,
    settings: JudgeSettings,
) -> list[Score]:
    """A row for each of `exam_figures.METRICS`; values NULL with the reason where one is undefined.

    Args:
        label: what is judged. One that could not be made has its own reason in all rows.
        explain: what it was written from, and what the null is fitted on.
        score: the positives are the first of its active sample, the random negatives the first of
            its silent windows.
        near_misses: the other negatives, of the same split.
        asker: the judge.
        resamples: of the documents.
        settings: how much is asked, and how.

    Raises:
        ScopenoteError: text that is to be judged is also in `explain`.
    """
    require_unseen_windows(explain, score, near_misses.windows)
    blank = Score(label.label_id, SCORER, asker.name, "", score.split, None)
    if label.status == "failed":
        return failed_rows(blank, METRICS, label.reason)
    exam = lay_out_exam(score, near_misses.windows, settings.n_windows)
    answers = ask_blindly(asker, PROMPT, label, exam, settings)
    predicted = fit_token_lookup(explain).predict(exam.windows.token_ids)
    return grade(blank, exam, answers, predicted.max(axis=1), resamples, settings)
