"""Discrimination: can a judge tell a feature's label from those of its nearest neighbours?

Shown is a window in which the feature fires, its active tokens marked, and several labels, its
own among them; the answer is the number of the one that fits. Each window is asked about in a
call of its own: together they would show what they have in common, and the answers would be one.
The feature's label stands in every place equally often, so that a judge with a liking for one
place, or one who guesses, gets 1 / K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from ..label.corpus_data import line
from ..store.collisions import say_the_same
from ..store.records import FeatureContexts, Label, Score, Stratum, content_hash
from ..store.rival_labels import RivalLabel, Rivals
from .agreement import NO_POSITIVE, Judged, correct_for_chance, mean_answer
from .exam_figures import (
    NEVER_ACTIVE,
    count_failures,
    facts_of,
    failed_rows,
    unanswered,
    with_agreement,
)
from .intervals import Resamples
from .scored_windows import hash_of_windows, require_unseen, take_windows
from .window_exams import JudgeSettings
from .window_questions import Answer, Asker, Question, compose, show_label

SCORER = "discrimination"
METRICS = ("accuracy", "chance_corrected", "probability")

NO_RIVAL = "no near neighbour has a label"
SAYS_THE_SAME = "a near neighbour's label says the same"
NO_NULL = "the token lookup reads no labels"

FEWEST = 5
PROMPT = "tell_apart"
_AT_MOST = 9  # labels, a digit each


@dataclass(frozen=True, slots=True)
class OwnWindows:
    """Windows in which a feature fires, those in which its neighbours are silent first.

    Attributes:
        n_apart: in how many, the first, no neighbour fires for certain.
        n_shared: in how many, the last, one does.
    """

    stratum: Stratum
    n_apart: int
    n_shared: int


def discriminate(
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    rivals: Rivals | None,
    asker: Asker,
    resamples: Resamples,
    settings: JudgeSettings,
) -> list[Score]:
    """A row for each of `METRICS`; values NULL with the reason where one is undefined.

    `accuracy` is the share of windows to which the judge gives the feature's own label, several
    labels of one probability sharing the window; `probability` the mean probability of that label.

    Args:
        label: what is judged. One that could not be made has its own reason in all rows.
        explain: what it was written from.
        score: the windows are from its active sample.
        rivals: of the same split; None where no neighbour has a label.
        asker: the judge.
        resamples: of the documents.
        settings: how many windows; there is always one a call.

    Raises:
        ScopenoteError: text that is to be judged is also in `explain`.
    """
    require_unseen(explain, score)
    blank = Score(label.label_id, SCORER, asker.name, "", score.split, None)
    if label.status == "failed" or label.text is None:
        return failed_rows(blank, METRICS, label.reason)
    if rivals is None or not rivals.labels:
        return failed_rows(blank, METRICS, NO_RIVAL)
    # A digit numbers the labels.
    rivals = replace(rivals, labels=rivals.labels[: _AT_MOST - 1])
    blank = replace(blank, design=_design(rivals.labels))
    if any(say_the_same(label.text, rival.text) for rival in rivals.labels):
        return failed_rows(blank, METRICS, SAYS_THE_SAME)
    own = own_windows(score.active, rivals, settings.n_windows)
    if not len(own.stratum):
        return failed_rows(blank, METRICS, NEVER_ACTIVE)
    places = _places(label, len(own.stratum), 1 + len(rivals.labels), settings.seed)
    answers = _ask(asker, [label.text, *(rival.text for rival in rivals.labels)], own, places)
    return _rows(blank, own, answers, places, resamples, settings)


def own_windows(active: Stratum, rivals: Rivals, n: int) -> OwnWindows:
    """Up to n windows of the sample, first those in which no neighbour fires for certain.

    Whether a neighbour fires is known of windows of the background; those of which it is not known
    follow. Those in which one does are only taken where fewer than `FEWEST` others are there: what
    is marked is then still the feature's own, but a neighbour's label may be as right.
    """
    hashes = active.windows.token_hash
    is_apart, is_shared = np.isin(hashes, rivals.apart), np.isin(hashes, rivals.shared)
    kinds = [np.flatnonzero(each) for each in (is_apart, ~is_apart & ~is_shared, is_shared)]
    if len(kinds[0]) + len(kinds[1]) >= FEWEST:
        kinds.pop()
    rows = np.concatenate(kinds)[:n]
    return OwnWindows(
        take_windows(active, rows), int(is_apart[rows].sum()), int(is_shared[rows].sum())
    )


def _design(rivals: tuple[RivalLabel, ...]) -> dict[str, object]:
    return {
        "n_labels": 1 + len(rivals),
        "neighbours": [rival.feature for rival in rivals],
        "cosines": [rival.cosine for rival in rivals],
        "explainers": [rival.explainer for rival in rivals],
    }


def _places(label: Label, n_windows: int, k: int, seed: int) -> Int64[np.ndarray, "W K"]:
    """For each window the labels in the order in which they are shown, the feature's own being 0.

    One order, drawn from seed and feature, and turned on by one place from window to window.
    """
    rng = np.random.default_rng([seed, int(content_hash(str(label.feature_id)), 16)])
    order = rng.permutation(k)
    return np.stack([np.roll(order, turn) for turn in range(n_windows)])


def _ask(
    asker: Asker, texts: list[str], own: OwnWindows, places: Int64[np.ndarray, "W K"]
) -> list[Answer | str]:
    token_ids, is_active = own.stratum.windows.token_ids, own.stratum.activations > 0
    questions = [
        _question([texts[which] for which in order.tolist()], asker.show(1, ids, marked))
        for order, ids, marked in zip(places, token_ids, is_active, strict=True)
    ]
    return [answer for (answer,) in asker.answers(questions)]


def _question(texts: list[str], window: str) -> Question:
    labels = "".join(
        line(f"label {number}") + show_label(text) for number, text in enumerate(texts, start=1)
    )
    digits = tuple(range(1, len(texts) + 1))
    return compose(PROMPT, labels + line("end of labels"), [window], digits)


def _rows(
    blank: Score,
    own: OwnWindows,
    answers: list[Answer | str],
    places: Int64[np.ndarray, "W K"],
    resamples: Resamples,
    settings: JudgeSettings,
) -> list[Score]:
    answered = np.flatnonzero([isinstance(answer, Answer) for answer in answers])
    windows = own.stratum.windows.take(answered)
    design = {
        **blank.design,
        "n_apart": own.n_apart,
        "n_shared": own.n_shared,
        "failed": count_failures(answers),
        **facts_of(answers, resamples, settings),
    }
    filled = replace(
        blank,
        n_windows=len(windows),
        n_tokens=int(windows.is_token.sum()),
        design=design,
        contexts_hash=hash_of_windows(windows.window_id),
        lift_reason=NO_NULL,
    )
    if not len(answered):
        return failed_rows(filled, METRICS, unanswered(NO_POSITIVE, answers))
    said = np.array([each.probabilities for each in answers if isinstance(each, Answer)])
    is_own = places[answered] == 0
    is_best = said == said.max(axis=1, keepdims=True)
    right = (is_best & is_own).sum(axis=1) / is_best.sum(axis=1)
    accuracy, probability = (
        mean_answer(Judged(values, windows.document), resamples, settings.level)
        for values in (right, said[is_own])
    )
    chance_corrected = correct_for_chance(accuracy, 1 / is_own.shape[1])
    found = (accuracy, chance_corrected, probability)
    return [with_agreement(filled, *each) for each in zip(METRICS, found, strict=True)]
