"""The figures that a judge's answers to an exam come to, as rows; what is undefined says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from ..store.records import Score
from .agreement import (
    NO_NEGATIVE,
    NO_POSITIVE,
    Agreement,
    Judged,
    auroc,
    balanced_accuracy,
    correct_for_chance,
)
from .intervals import Resamples
from .metrics import NO_LABEL
from .scored_windows import hash_of_windows
from .window_exams import KINDS, YES, Exam, JudgeSettings, Rows
from .window_questions import Answer

MEASURES = ("auroc", "balanced_accuracy", "chance_corrected")
METRICS = tuple(f"{measure}_{kind}" for kind in KINDS for measure in MEASURES)

NEVER_ACTIVE = "no window of the split is kept in which the feature fires"
NEVER_SILENT = "no window of the background is kept in which the feature is silent"
NO_NEAR_MISS = "no near neighbour fires in the background where the feature is silent"
NO_PROBABILITY = "the token lookup gives no probability"


def grade(
    blank: Score,
    exam: Exam,
    answers: Sequence[Answer | str],
    null: Float32[np.ndarray, " W"],
    resamples: Resamples,
    settings: JudgeSettings,
) -> list[Score]:
    """The rows that answers come to.

    Args:
        blank: what all rows have in common.
        exam: what was asked.
        answers: for each row of it an answer of `NO` and `YES`, or why there is none.
        null: what the token lookup expects of each row, on any scale: its AUROC is the null's.
        resamples: of the documents.
        settings: as it was asked.
    """
    probability = np.array(
        [each.probabilities[YES] if isinstance(each, Answer) else np.nan for each in answers]
    )
    test = _Test(exam, answers, probability, null.astype(np.float64), resamples, settings)
    return [row for kind in KINDS for row in test.rows(blank, kind)]


def failed_rows(blank: Score, metrics: Sequence[str], reason: str | None) -> list[Score]:
    """The rows of what cannot be scored at all."""
    why = reason or NO_LABEL
    return [replace(blank, metric=metric, reason=why, lift_reason=why) for metric in metrics]


def count_failures(answers: Sequence[Answer | str]) -> dict[str, int]:
    """How many have no answer, by reason."""
    return dict(sorted(Counter(each for each in answers if isinstance(each, str)).items()))


def unanswered(reason: str, answers: Sequence[Answer | str]) -> str:
    """The reason where nothing was answered, with why not where that is one thing."""
    failures = count_failures(answers)
    return f"{reason}: {next(iter(failures))}" if len(failures) == 1 else reason


def facts_of(
    answers: Sequence[Answer | str], resamples: Resamples, settings: JudgeSettings
) -> dict[str, Any]:
    """What is kept beside every score: what answers were made of, and how it was asked."""
    masses = [each.mass for each in answers if isinstance(each, Answer)]
    known = [mass for mass in masses if mass is not None]
    return {
        "n_answered_by_logprobs": len(known),
        "captured_mass": float(np.mean(known)) if known else None,
        "seed": settings.seed,
        "n_resamples": len(resamples),
        "resamples_seed": resamples.seed,
        "level": settings.level,
    }


def with_agreement(filled: Score, metric: str, found: Agreement) -> Score:
    """A row with this figure."""
    interval, design = found.interval, filled.design
    if found.interval_reason is not None:
        design = {**design, "interval_reason": found.interval_reason}
    return replace(
        filled,
        metric=metric,
        value=found.value,
        reason=found.reason,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        design=design,
    )


@dataclass(frozen=True, slots=True)
class _Test:
    """A judge's answers, and the rows that come of them.

    Attributes:
        probability: of `YES`, by row; NaN where there is no answer.
    """

    exam: Exam
    answers: Sequence[Answer | str]
    probability: Float64[np.ndarray, " W"]
    null: Float64[np.ndarray, " W"]
    resamples: Resamples
    settings: JudgeSettings

    def rows(self, blank: Score, kind: str) -> list[Score]:
        """One test's scores: the positives against the negatives of this kind."""
        asked = (self.exam.positives, self.exam.negatives[kind])
        answered = [rows[np.isfinite(self.probability[rows])] for rows in asked]
        filled = self._filled(blank, asked, answered)
        metrics = [f"{measure}_{kind}" for measure in MEASURES]
        if (reason := self._undefined(kind, asked, answered)) is not None:
            return failed_rows(filled, metrics, reason)
        documents = [self.exam.windows.document[rows] for rows in answered]
        judged, of_null = (
            [Judged(values[rows], of) for rows, of in zip(answered, documents, strict=True)]
            for values in (self.probability, self.null)
        )
        asking = (self.resamples, self.settings.level)
        area = auroc(judged[0], judged[1], *asking)
        balanced = balanced_accuracy(judged[0], judged[1], *asking)
        null_area = auroc(of_null[0], of_null[1], *asking)
        assert area.value is not None and null_area.value is not None, "both kinds were answered"
        beside = replace(filled, null_value=null_area.value, lift=area.value - null_area.value)
        without = replace(filled, lift_reason=NO_PROBABILITY)
        return [
            with_agreement(beside, metrics[0], area),
            with_agreement(without, metrics[1], balanced),
            with_agreement(without, metrics[2], correct_for_chance(balanced)),
        ]

    def _filled(self, blank: Score, asked: Sequence[Rows], answered: Sequence[Rows]) -> Score:
        taken = np.concatenate(answered)
        windows = self.exam.windows.take(taken)
        facts = {
            "n_positive": len(answered[0]),
            "n_negative": len(answered[1]),
            "failed_positive": count_failures(self._of(asked[0])),
            "failed_negative": count_failures(self._of(asked[1])),
            "windows_a_call": self.settings.windows_a_call,
            **facts_of(self._of(taken), self.resamples, self.settings),
        }
        return replace(
            blank,
            n_windows=len(taken),
            n_tokens=int(windows.is_token.sum()),
            design=facts,
            contexts_hash=hash_of_windows(windows.window_id),
        )

    def _undefined(self, kind: str, asked: Sequence[Rows], answered: Sequence[Rows]) -> str | None:
        if not len(asked[0]):
            return NEVER_ACTIVE
        if not len(asked[1]):
            return NEVER_SILENT if kind == "random" else NO_NEAR_MISS
        for rows, of, reason in zip(asked, answered, (NO_POSITIVE, NO_NEGATIVE), strict=True):
            if not len(of):
                return unanswered(reason, self._of(rows))
        return None

    def _of(self, rows: Rows) -> list[Answer | str]:
        return [self.answers[row] for row in rows.tolist()]
