"""Windows that a judge is asked about in mixed company, as `detection` and `fuzzing` both do it.

Which windows are positives and which negatives, and in what order they are shown. Left out: the
figures that answers come to (`exam_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool

from ..label.corpus_data import line
from ..store.records import FeatureContexts, Label, Stratum, Windows, content_hash
from .scored_windows import require_unseen
from .window_questions import Answer, Asker, Question, compose, show_label

KINDS = ("random", "near_miss")
"""Of negatives: drawn from all silent windows, and those in which a near neighbour fires."""

NO, YES = 0, 1

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """What a user may choose.

    Attributes:
        n_windows: at most so many of each kind.
        windows_a_call: how many are asked about in one call.
        seed: of the order in which they are shown.
        level: the intervals'.
    """

    n_windows: int = 30
    windows_a_call: int = 8
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Exam:
    """The windows that a judge is asked about, each once, whatever it stands for.

    Attributes:
        windows: one row a window.
        marked: the tokens that are marked where it is shown.
        positives: the rows in which the feature fires.
        negatives: by kind, the rows in which it is silent; a row may be of both.
    """

    windows: Windows
    marked: Bool[np.ndarray, "W T"]
    positives: Rows
    negatives: Mapping[str, Rows]


def lay_out_exam(score: FeatureContexts, near_misses: Windows, n: int) -> Exam:
    """The first n windows of each kind, nothing marked; windows of two kinds stand there once."""
    active, silent, near = (
        windows.take(np.arange(min(n, len(windows))))
        for windows in (score.active.windows, score.silent.windows, near_misses)
    )
    row_of = {name: len(active) + row for row, name in enumerate(silent.window_id.tolist())}
    names = near.window_id.tolist()
    others = [place for place, name in enumerate(names) if name not in row_of]
    first_other = len(active) + len(silent)
    row_of |= {names[place]: first_other + i for i, place in enumerate(others)}
    windows = Windows.joined([active, silent, near.take(np.array(others, dtype=np.intp))])
    return Exam(
        windows=windows,
        marked=np.zeros(windows.token_ids.shape, np.bool_),
        positives=np.arange(len(active)),
        negatives={
            "random": np.arange(len(active), first_other),
            "near_miss": np.array([row_of[name] for name in names], dtype=np.intp),
        },
    )


def require_unseen_windows(
    explain: FeatureContexts, score: FeatureContexts, others: Windows
) -> None:
    """Refuses windows, of the contexts or others, that the label may have been written from.

    Raises:
        ScopenoteError: as `scored_windows.require_unseen`.
    """
    require_unseen(explain, score)
    nothing = np.zeros(others.token_ids.shape, np.float32)
    require_unseen(explain, replace(score, silent=Stratum(others, nothing, len(others))))


def ask_blindly(
    asker: Asker, prompt: str, label: Label, exam: Exam, settings: JudgeSettings
) -> list[Answer | str]:
    """What the judge says of each row: windows of all kinds in one order, drawn from the seed.

    The order depends on seed and feature alone, so that all labels of a feature are asked about
    in the same company.
    """
    feature = int(content_hash(str(label.feature_id)), 16)
    order = np.random.default_rng([settings.seed, feature]).permutation(len(exam.windows))
    n_calls = -(-len(order) // settings.windows_a_call)
    groups = np.array_split(order, n_calls) if n_calls else []
    replies = asker.answers([_question(asker, prompt, label, exam, rows) for rows in groups])
    answers: list[Answer | str] = [""] * len(order)
    for rows, reply in zip(groups, replies, strict=True):
        for row, answer in zip(rows.tolist(), reply, strict=True):
            answers[row] = answer
    return answers


def _question(asker: Asker, prompt: str, label: Label, exam: Exam, rows: Rows) -> Question:
    shown = [
        asker.show(number, exam.windows.token_ids[row], exam.marked[row])
        for number, row in enumerate(rows.tolist(), start=1)
    ]
    head = line("label") + show_label(label.text or "") + line("end of label")
    return compose(prompt, head, shown, (NO, YES))
