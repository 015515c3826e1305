"""Told apart by output: a judge who sees only what the model says finds the labelled feature.

Shown are the label and three groups of outputs in an order drawn from the seed: the tokens that
become more probable and what the model writes on while a feature is turned up. One group is the
labelled feature's, two are other features', turned up as strongly; which beginnings the model
wrote on from is not shown. After Gur-Arieh et al. (2025, arXiv:2501.08319, "output-based
evaluation"). Each question is a call of its own with two other features that no other has:
questions that share rivals would be one answer. The feature's own group stands in every place
equally often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..label.chat import Message
from ..label.corpus_data import line, make_harmless, show_on_one_line
from ..store.records import Label, Score, content_hash
from ..store.steered_scores import INTERVENTION
from .chance import above_chance
from .exam_figures import count_failures, failed_rows, unanswered
from .intervention import N_PROMOTED, N_SHOWN, WRITTEN_TOKENS, shown_prompts, with_value
from .window_questions import Answer, Asker, Question, compose_messages, show_label

METRIC = "told_apart"
PROMPT = "tell_outputs"
N_GROUPS = 3

NO_OUTPUT = "no outputs of the feature are kept"
FEW_OTHERS = "the SAE has fewer than two other features that fire"
NOTHING_ANSWERED = "no question was answered"

_DIGITS = tuple(range(1, N_GROUPS + 1))


def tell_apart(
    label: Label, promoted: Score, asker: Asker, n_questions: int, seed: int, level: float
) -> Score:
    """The row of `told_apart`: how much oftener than by chance the judge is right.

    (accuracy - 1/3) / (2/3), groups that the judge holds equally likely sharing the question; the
    interval is exact over the questions. NULL with the reason where it is undefined.

    Args:
        label: what is judged.
        promoted: its row of `promoted_tokens`, whose `design` has the outputs.
        asker: the judge.
        n_questions: at most so many, as long as there are other features.
        seed: of the order of the groups.
        level: the interval's.
    """
    outputs = promoted.design
    blank = Score(
        label_id=label.label_id,
        scorer=INTERVENTION,
        simulator=asker.name,
        metric=METRIC,
        split=promoted.split,
        value=None,
        n_windows=promoted.n_windows,
        n_tokens=promoted.n_tokens,
        design={name: outputs[name] for name in ("strength", "norm") if name in outputs},
        contexts_hash=promoted.contexts_hash,
    )
    if label.status == "failed" or label.text is None:
        return failed_rows(blank, [METRIC], label.reason)[0]
    if "written" not in outputs:
        return failed_rows(blank, [METRIC], promoted.reason or NO_OUTPUT)[0]
    n_trials = min(n_questions, len(outputs["rivals"]) // 2)
    if not n_trials:
        return failed_rows(blank, [METRIC], FEW_OTHERS)[0]
    orders = _orders(label, n_trials, seed)
    questions = [
        question_about(label.text, [groups[which] for which in order])
        for order, groups in zip(
            orders, (_groups(outputs, trial) for trial in range(n_trials)), strict=True
        )
    ]
    answers = [answer for (answer,) in asker.answers(questions)]
    return _row(blank, answers, orders, seed, level)


def question_about(text: str, groups: Sequence[Mapping[str, Any]]) -> Question:
    """Which of these groups of outputs a label goes with."""
    shown = line("label") + show_label(text) + line("end of label")
    for number, group in enumerate(groups, start=1):
        tokens = ", ".join(f"“{_on_one_line(token)}”" for token in group["promoted"])
        shown += line(f"group {number}") + f"more probable: {tokens}\n"
        shown += "".join(f"written: …{_on_one_line(text)}…\n" for text in group["written"])
    messages: tuple[Message, ...] = compose_messages(PROMPT, shown + line("end of groups"))
    return Question(messages, 1, _DIGITS, about="questions")


def usual_question(text: str) -> Question:
    """A question about a label with as many outputs as there are, of words of no meaning."""
    written = " something" * WRITTEN_TOKENS
    return question_about(
        text, [{"promoted": [" something"] * N_PROMOTED, "written": [written] * N_SHOWN}] * N_GROUPS
    )


def _groups(outputs: Mapping[str, Any], trial: int) -> list[Mapping[str, Any]]:
    """The feature's own outputs, then those of the two others of this trial."""
    prompts = shown_prompts(trial, len(outputs["written"]), N_SHOWN)
    own = {
        "promoted": outputs["promoted"],
        "written": [outputs["written"][prompt] for prompt in prompts],
    }
    return [own, *outputs["rivals"][2 * trial : 2 * trial + 2]]


def _orders(label: Label, n_trials: int, seed: int) -> list[list[int]]:
    """In which order the groups of each trial are shown, 0 being the feature's own."""
    rng = np.random.default_rng([seed, int(content_hash(str(label.feature_id)), 16)])
    first = int(rng.integers(N_GROUPS))
    orders = []
    for trial in range(n_trials):
        order = [1, 2] if rng.random() < 0.5 else [2, 1]
        order.insert((first + trial) % N_GROUPS, 0)
        orders.append(order)
    return orders


def _row(
    blank: Score,
    answers: Sequence[Answer | str],
    orders: Sequence[Sequence[int]],
    seed: int,
    level: float,
) -> Score:
    masses = [each.mass for each in answers if isinstance(each, Answer) and each.mass is not None]
    answered = [
        (each.probabilities, order.index(0))
        for each, order in zip(answers, orders, strict=True)
        if isinstance(each, Answer)
    ]
    filled = replace(
        blank,
        design={
            **blank.design,
            "n_questions": len(answers),
            "n_answered": len(answered),
            "failed": count_failures(answers),
            "n_answered_by_logprobs": len(masses),
            "captured_mass": float(np.mean(masses)) if masses else None,
            "seed": seed,
            "level": level,
        },
    )
    if not answered:
        return failed_rows(filled, [METRIC], unanswered(NOTHING_ANSWERED, answers))[0]
    right = sum(_credit(probabilities, own) for probabilities, own in answered)
    found = above_chance(right, len(answered), 1 / N_GROUPS, level)
    return with_value(filled, found.value, found.interval.low, found.interval.high)


def _credit(probabilities: Sequence[float], own: int) -> float:
    """1 for the feature's own group, shared among groups that are held equally likely."""
    best = [place for place, each in enumerate(probabilities) if each == max(probabilities)]
    return (own in best) / len(best)


def _on_one_line(text: str) -> str:
    return show_on_one_line(make_harmless(text))
