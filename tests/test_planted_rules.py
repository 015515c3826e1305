"""Features that follow written rules: true labels score high, wrong and bad ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.score_label import score_label
from scopenote.evaluate.scored_windows import few_windows
from scopenote.flows.score_settings import JudgeSection
from scopenote.store.records import Score

from .planted_rules import (
    FIRST_WORD,
    Planted,
    RandomSimulator,
    RuleSimulator,
    Text,
    a_label,
    activations,
    after,
    digit_run,
    in_set,
    keep,
    quoted,
    words_of_density,
    write_text,
)

RESAMPLES = draw_resamples(seed=1, n_resamples=100)
RNG = np.random.default_rng(3)
SET = words_of_density(0.01, RNG)
BEFORE, FOLLOWING = words_of_density(0.1, RNG, 6), words_of_density(0.1, RNG, 6)
RARE = np.array([FIRST_WORD + 900])
CONTEXTUAL = ("after another", "quoted", "digit run")
TRUE, HALF, TWICE = "true", "half", "twice"


@cache
def texts() -> tuple[Text, Text]:
    return write_text("explain", 1200, 1), write_text("score", 1200, 2)


def rules(text: Text) -> dict[str, np.ndarray]:
    return {
        "token set": in_set(text, SET),
        "after another": after(text, FOLLOWING, BEFORE),
        "quoted": quoted(text),
        "digit run": digit_run(text),
        "rare word": in_set(text, RARE),
    }


@cache
def planted(rule: str) -> tuple[Planted, Planted]:
    explain, score = (
        keep(text, activations(rules(text)[rule], text.token_ids, seed=5), seed=7)
        for text in texts()
    )
    return explain, score


def headline(rule: str, label: str) -> Score:
    explain, score = planted(rule)
    simulator = RuleSimulator(score.first_id, rules(texts()[1]))
    scored = score_label(
        a_label(label), explain.contexts, score.contexts, simulator, RESAMPLES
    ).scores[0]
    assert scored.metric == "correlation"
    return scored


ALL = ("token set", "after another", "quoted", "digit run", "rare word")


@pytest.mark.parametrize("rule", ALL)
def test_the_true_label_scores_above_nine_tenths_and_another_s_about_nothing(rule: str) -> None:
    true = headline(rule, rule)
    assert true.value > 0.9
    assert true.ci_low < true.value <= true.ci_high
    for other in ALL:
        if other != rule:
            assert abs(headline(rule, other).value) < 0.1


def test_a_feature_of_tokens_alone_has_no_lift_and_one_of_context_has() -> None:
    for rule in ("token set", "rare word"):
        assert abs(headline(rule, rule).lift) < 0.06
    for rule in CONTEXTUAL:
        scored = headline(rule, rule)
        assert scored.lift > 0.1
        assert scored.lift_ci_low > 0


METRICS = ("correlation", "ev_correlation_top_and_random")
Windows = tuple[int, int]


def sanity_checks(
    density: float, n_features: int, sizes: Sequence[Windows]
) -> dict[Windows, dict[str, dict[str, float]]]:
    """The share of planted token sets whose score drops when the label loses or gains tokens.

    After the checks of Oikarinen et al. (2025, arXiv 2506.05774): missing labels, half of the
    tokens; extra labels, twice as many, the others as frequent. An undefined score has dropped.

    Args:
        density: the share of tokens at which a feature is active, about.
        n_features: how many are planted.
        sizes: how many active and silent windows are simulated, each a case.

    Returns:
        By size and metric, for either kind of bad label.
    """
    explain_text, score_text = texts()
    drops: dict[Windows, dict[str, list[tuple[bool, bool]]]] = {}
    for feature in range(n_features):
        rng = np.random.default_rng([feature, round(density * 10**6)])
        tokens = words_of_density(density, rng)
        extra = words_of_density(density, rng, without=tuple(tokens.tolist()))
        labels = {
            TRUE: tokens,
            HALF: tokens[rng.permutation(len(tokens))[: len(tokens) // 2]],
            TWICE: np.concatenate([tokens, extra]),
        }
        explain, score = (
            keep(text, activations(in_set(text, tokens), text.token_ids, feature), feature)
            for text in (explain_text, score_text)
        )
        holds = {name: in_set(score_text, words) for name, words in labels.items()}
        simulator = RuleSimulator(score.first_id, holds)
        for size in sizes:
            few = few_windows(score.contexts, *size)
            found = {
                name: {
                    each.metric: -1.0 if each.value is None else each.value
                    for each in score_label(
                        a_label(name), explain.contexts, few, simulator, RESAMPLES
                    ).scores
                }
                for name in labels
            }
            for metric in METRICS:
                true = found[TRUE][metric]
                drops.setdefault(size, {}).setdefault(metric, []).append(
                    (found[HALF][metric] < true, found[TWICE][metric] < true)
                )
    return {
        size: {
            metric: dict(zip((HALF, TWICE), np.mean(dropped, axis=0).tolist(), strict=True))
            for metric, dropped in by_metric.items()
        }
        for size, by_metric in drops.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.003, 0.01, 0.05])
def test_a_label_that_loses_or_gains_tokens_scores_less(density: float) -> None:
    judge = JudgeSection()
    default, of_a_judge = (60, 4096), (judge.active_windows, judge.silent_windows)
    found = sanity_checks(density, 40, [default, of_a_judge])
    for size in (default, of_a_judge):
        for dropped in found[size]["correlation"].values():
            assert dropped >= 0.9, (size, found)


@pytest.mark.long
def test_the_best_of_ten_random_labels_gains_nothing_where_it_was_not_chosen() -> None:
    select_text, score_text = write_text("select", 400, 3), write_text("score", 400, 4)
    explain_text = write_text("explain", 400, 5)
    gains: dict[str, list[float]] = {"select": [], "score": []}
    for feature in range(200):
        rng = np.random.default_rng([8, feature])
        tokens = words_of_density(0.01, rng)
        explain, select, score = (
            keep(
                text,
                activations(in_set(text, tokens), text.token_ids, feature),
                feature,
                background=512,
            )
            for text in (explain_text, select_text, score_text)
        )
        found = {
            planted_in.contexts.split: [
                score_label(
                    a_label(str(number)),
                    explain.contexts,
                    few_windows(planted_in.contexts, 30, 60),
                    RandomSimulator(2 * feature + (planted_in is score)),
                    RESAMPLES,
                )
                .scores[0]
                .value
                for number in range(10)
            ]
            for planted_in in (select, score)
        }
        chosen = int(np.argmax(found["select"]))
        for split, values in found.items():
            gains[split].append(values[chosen] - float(np.mean(values)))
    means = {split: float(np.mean(of_split)) for split, of_split in gains.items()}
    errors = {split: float(np.std(of_split) / 200**0.5) for split, of_split in gains.items()}
    assert abs(means["score"]) < 2 * errors["score"]
    # Reported where it was chosen, a label that says nothing would seem to.
    assert means["select"] > 10 * errors["select"]
    assert means["select"] > 0.01
