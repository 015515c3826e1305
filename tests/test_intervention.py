"""Labels scored by which tokens their features promote: by hand, and planted on the toy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import pytest
from scopenote.evaluate.intervention import (
    N_SHOWN,
    NO_OTHER,
    NO_TOKEN,
    SteeringTerms,
    Vocabulary,
    score_promoted,
    shown_prompts,
)
from scopenote.extract.steered_outputs import NO_DIRECTION, SteeredOutputs
from scopenote.store.records import Label, Score
from scopenote.store.scores import score_tables

from .planted_feature import FEATURE

WORDS = [" lion", " tiger", " bear", " word", " other"]
N_OTHERS = 20
LABEL = Label(FEATURE, "lions, that is “lion”", None, "highlighted", "1", ())
VOCABULARY = Vocabulary(
    lambda text: WORDS.index(text) if text in WORDS else None, WORDS.__getitem__
)
TERMS = SteeringTerms("model/toy", (7, 5, 9), 4, 1.0, 2.5, 0, 0.95)


def outputs(feature: int, *changes: float) -> SteeredOutputs:
    written = tuple(f"written {feature} after {prompt}" for prompt in range(8))
    return SteeredOutputs(feature, np.array(changes, np.float32), (f" top{feature}",), written)


def others(*changes: float) -> list[SteeredOutputs]:
    """At " lion" each of these, and elsewhere nothing."""
    return [outputs(100 + n, change, 0, 0, 0, 0) for n, change in enumerate(changes)]


def scored(
    change: float, against: Sequence[SteeredOutputs], label: Label = LABEL, **terms: Any
) -> Score:
    own = outputs(FEATURE.feature, change, 9, 9, 9, 9)
    return score_promoted(label, own, against, VOCABULARY, replace(TERMS, **terms))


def test_the_value_is_how_often_the_named_tokens_gain_more_than_elsewhere() -> None:
    lower = np.linspace(-1, 0.9, N_OTHERS)
    assert scored(1.0, others(*lower)).value == 1
    assert scored(-2.0, others(*lower)).value == -1
    assert scored(0.0, others(*[-1.0] * 15, *[1.0] * 5)).value == pytest.approx(0.5)
    # As much as elsewhere is neither more nor less.
    assert scored(0.0, others(*[0.0] * N_OTHERS)).value == 0


def test_several_tokens_count_by_their_mean() -> None:
    label = replace(LABEL, text="“lion” and “tiger”")
    assert scored(-5.0, others(*[1.9] * 4), label).value == 1  # (-5 + 9) / 2 against 1.9 / 2
    assert scored(-9.0, others(*[1.9] * 4), label).value == -1


def test_the_interval_is_the_exact_one_over_the_other_features() -> None:
    found = scored(1.0, others(*[0.0] * N_OTHERS))
    assert (found.ci_low, found.ci_high) == (pytest.approx(2 * 0.8316 - 1, abs=1e-4), 1)
    assert (found.null_value, found.lift) == (0, 1)
    assert (found.lift_ci_low, found.lift_ci_high) == (found.ci_low, found.ci_high)


def test_the_row_says_what_it_was_computed_from() -> None:
    found = scored(1.0, others(*[0.0, 0.5] * 10))
    assert (found.scorer, found.simulator, found.metric) == (
        "intervention", "model/toy", "promoted_tokens",
    )  # fmt: skip
    assert (found.split, found.n_windows, found.n_tokens) == ("score", 3, 12)
    design = found.design
    assert design["tokens"] == [" lion"]
    assert (design["gain"], design["gain_of_others"]) == (1, 0.25)
    assert (design["strength"], design["norm"], design["seed"]) == (1.0, 2.5, 0)
    assert design["promoted"] == [" top7"]
    assert len(design["written"]) == 8
    # Another order of the prompts is the same text.
    again = scored(1.0, others(0.0))
    assert again.contexts_hash == found.contexts_hash
    assert scored(1.0, others(0.0), prompts=(5, 7, 9)).contexts_hash == found.contexts_hash
    json.loads(score_tables([found], [], "r")["scores"]["design"][0].as_py())


def test_of_each_other_feature_is_kept_what_its_one_question_shows() -> None:
    rivals = scored(1.0, others(*[0.0] * N_OTHERS)).design["rivals"]
    assert [rival["feature"] for rival in rivals] == list(range(100, 120))
    for place, rival in enumerate(rivals):
        shown = shown_prompts(place // 2, 8, N_SHOWN)
        assert rival["written"] == [f"written {100 + place} after {n}" for n in shown]


@pytest.mark.parametrize("n_prompts", [1, 2, 3, 8, 10])
def test_each_question_shows_other_prompts_and_none_twice(n_prompts: int) -> None:
    shown = [shown_prompts(trial, n_prompts, 3) for trial in range(10)]
    assert all(len(set(each)) == len(each) == min(3, n_prompts) for each in shown)
    assert {place for each in shown for place in each} == set(range(n_prompts))


def test_a_label_that_names_no_token_is_undefined_and_its_outputs_are_kept() -> None:
    found = scored(1.0, others(*[0.0] * 6), replace(LABEL, text="the words of others"))
    assert (found.value, found.reason, found.lift_reason) == (None, NO_TOKEN, NO_TOKEN)
    assert found.ci_low is found.null_value is None
    assert found.design["promoted"]
    assert len(found.design["rivals"]) == 6


def test_a_failed_label_has_its_own_reason() -> None:
    failed = replace(LABEL, text=None, status="failed", reason="the model declined to answer")
    found = scored(1.0, others(0.0), failed)
    assert (found.value, found.reason) == (None, "the model declined to answer")


def test_a_feature_that_cannot_be_turned_up_is_undefined() -> None:
    found = score_promoted(LABEL, NO_DIRECTION, others(0.0), VOCABULARY, TERMS)
    assert (found.value, found.reason) == (None, NO_DIRECTION)


def test_without_other_features_there_is_nothing_to_compare_with() -> None:
    found = scored(1.0, [])
    assert (found.value, found.reason) == (None, NO_OTHER)


# --- planted on the toy -----------------------------------------------------------------------

N_PLANTED = 60


def test_labels_of_what_a_feature_promotes_score_high_and_shuffled_ones_as_chance() -> None:
    from scopenote.extract.logit_effects import logit_effects
    from scopenote.extract.models import load_model, token_texts
    from scopenote.extract.saes import load_sae
    from scopenote.extract.steered_outputs import (
        SteeringBench,
        single_token,
        steered_outputs,
    )
    from scopenote.flows.collect_setup import sae_sources
    from scopenote.flows.config import demo_config

    model = load_model("toy", [], "cpu", "float32")
    (source,) = (each for each in sae_sources(demo_config()) if each.site.kind == "res")
    sae = load_sae(source, model.config)
    raised = logit_effects(model, sae, range(sae.width), 5)
    assert raised is not None
    text = "def close(self):\n    the file is written, and closed when all of it is on the disk. If"
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    texts = [ids[at : at + 8] for at in range(0, 16, 4)]
    bench = SteeringBench.of(model, sae, texts, 1.0, 0, 10, 0)
    drawn = np.random.default_rng(0).permutation(sae.width)[: N_PLANTED + N_OTHERS].tolist()
    found = {feature: steered_outputs(bench, feature) for feature in drawn}
    planted, compared = drawn[:N_PLANTED], [found[feature] for feature in drawn[N_PLANTED:]]
    vocabulary = Vocabulary(
        partial(single_token, model.tokenizer),
        lambda token: token_texts(model.tokenizer, [token])[0],
    )

    def value(feature: int, labelled: int) -> float | None:
        tokens = token_texts(model.tokenizer, raised.raised.columns[labelled].tolist())
        label = replace(LABEL, text=", ".join(f"“{token.strip()}”" for token in tokens))
        return score_promoted(label, found[feature], compared, vocabulary, TERMS).value

    own = [value(feature, feature) for feature in planted]
    shuffled = [
        value(feature, other)
        for feature, other in zip(planted, planted[1:] + planted[:1], strict=True)
    ]
    defined = [each for each in own if each is not None]
    assert len(defined) > 0.9 * N_PLANTED
    assert mean(defined) > 0.9
    by_chance = [each for each in shuffled if each is not None]
    # Of one label, a value by chance is about evenly spread over -1 to 1.
    assert abs(mean(by_chance)) < 3 * (1 / 3 / len(by_chance)) ** 0.5
    assert np.std(by_chance) > 0.4
