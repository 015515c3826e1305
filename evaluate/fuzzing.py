"""Fuzzing: can a judge tell from the label whether the right tokens of a window are marked?

After Paulo et al. (2024, "Automatically interpreting millions of features in large language
models"). There, wrong marks are at random places, about as many in each window. Here they are
copied, places and number, from the positives one by one, so that nothing about the marks but
what stands there tells right from wrong; and windows are those of `detection`, random ones and
near misses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32

from ..label.token_lookup import fit_token_lookup
from ..store.near_misses import NearMisses
from ..store.records import FeatureContexts, Label, Score
from .exam_figures import METRICS, failed_rows, grade
from .intervals import Resamples
from .window_exams import (
    Exam,
    JudgeSettings,
    ask_blindly,
    lay_out_exam,
    require_unseen_windows,
)
from .window_questions import Asker

SCORER = "fuzzing"
PROMPT = "mark_tokens"


def fuzz(
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    near_misses: NearMisses,
    asker: Asker,
    resamples: Resamples,
    settings: JudgeSettings,
) -> list[Score]:
    """A row for each of `exam_figures.METRICS`, from the same windows; arguments as for `detect`.

    Raises:
        ScopenoteError: text that is to be judged is also in `explain`.
    """
    require_unseen_windows(explain, score, near_misses.windows)
    blank = Score(label.label_id, SCORER, asker.name, "", score.split, None)
    if label.status == "failed":
        return failed_rows(blank, METRICS, label.reason)
    exam = lay_out_exam(score, near_misses.windows, settings.n_windows)
    exam = mark(exam, score.active.activations[: len(exam.positives)] > 0)
    answers = ask_blindly(asker, PROMPT, label, exam, settings)
    predicted = fit_token_lookup(explain).predict(exam.windows.token_ids)
    return grade(blank, exam, answers, _mean_at_marks(predicted, exam), resamples, settings)


def mark(exam: Exam, is_active: Bool[np.ndarray, "K T"]) -> Exam:
    """The exam with the active tokens of the positives marked, and as many elsewhere.

    Each negative of a kind has the marks of another positive, at the same places. Within a kind
    the marks that reach furthest go to the longest windows; where none is long enough, marks
    beyond a window's end are at its last token.
    """
    marked = exam.marked.copy()
    marked[exam.positives] = is_active
    if not len(is_active):
        return replace(exam, marked=marked)
    length = exam.windows.is_token.sum(axis=1)
    reach = is_active.shape[1] - np.argmax(is_active[:, ::-1], axis=1)
    giver: dict[int, int] = {}
    for rows in exam.negatives.values():
        taken = {giver[row] for row in rows.tolist() if row in giver}
        rest = np.array([row for row in rows.tolist() if row not in giver], dtype=np.intp)
        free = [each for each in range(len(reach)) if each not in taken] or [*range(len(reach))]
        givers = np.resize(free, len(rest))
        furthest = givers[np.argsort(-reach[givers], kind="stable")]
        longest = rest[np.argsort(-length[rest], kind="stable")]
        giver |= dict(zip(longest.tolist(), furthest.tolist(), strict=True))
    for row, each in giver.items():
        marked[row, np.minimum(np.flatnonzero(is_active[each]), length[row] - 1)] = True
    return replace(exam, marked=marked)


def _mean_at_marks(predicted: Float32[np.ndarray, "W T"], exam: Exam) -> Float32[np.ndarray, " W"]:
    """What the lookup expects at the marked tokens of each row."""
    n_marked = np.maximum(exam.marked.sum(axis=1), 1)
    means: Float32[np.ndarray, " W"] = (predicted * exam.marked).sum(axis=1) / n_marked
    return means
