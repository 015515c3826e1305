"""Several strengths tried on one prompt, and the perplexity of what each made the model write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scopenote.extract.feature_changes import FeatureChange, HeldNeuron
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.saes import Sae
from scopenote.extract.sites import SiteKind
from scopenote.extract.steering import compare_steered
from scopenote.extract.steering_trial import SteeringTrial, perplexity, try_changes
from scopenote.store.errors import ModelError, UserMistake
from transformers import AutoModelForCausalLM

from .test_feature_changes import KINDS, make_sae
from .tiny_gemma import BOS, save_tiny_gemma

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

PROMPT = "the thing in a ring"
N_TOKENS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), [], "cpu", "float32")


@pytest.fixture(scope="module")
def saes(folder: Path, model: SubjectModel) -> dict[SiteKind, Sae]:
    return {kind: make_sae(model, folder, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    """The whole model as transformers has it, with its own head."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def token_ids(model: SubjectModel) -> list[int]:
    return [BOS, *model.tokenizer(PROMPT, add_special_tokens=False).input_ids]


def sweep(model: SubjectModel, sae: Sae, *strengths: float, **settings: Any) -> SteeringTrial:
    changes = [[FeatureChange(sae, 3, "add", strength)] for strength in strengths]
    return try_changes(model, changes, PROMPT, N_TOKENS, **settings)


def perplexity_slowly(network: Any, prompt: list[int], written: tuple[int, ...]) -> float:
    """Token by token, everything read anew, as a product of probabilities."""
    ids, likelihood = list(prompt), 1.0
    for token in written:
        with torch.inference_mode():
            logits = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        likelihood *= float(logits.double().softmax(-1)[token])
        ids.append(token)
    return likelihood ** (-1 / len(written))


def test_perplexity_is_that_of_the_unchanged_model_on_what_was_written(
    model: SubjectModel, network: Any, saes: dict[SiteKind, Sae]
) -> None:
    trial = sweep(model, saes["res"], -8.0, 8.0, seed=5)
    for written in (trial.plain, *trial.steered):
        ids = written.continuation.token_ids
        slowly = perplexity_slowly(network, token_ids(model), ids)
        assert written.perplexity == pytest.approx(slowly, rel=1e-4)
    assert len({written.continuation.token_ids for written in (trial.plain, *trial.steered)}) == 3


def test_perplexity_of_one_token_is_one_over_its_probability(
    model: SubjectModel, network: Any
) -> None:
    ids = token_ids(model)
    with torch.inference_mode():
        probabilities = network(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    for token in (300, 261):
        found = perplexity(model, ids, [token])
        assert found == pytest.approx(1 / float(probabilities[token]), rel=1e-4)


def test_nothing_written_has_no_perplexity(
    model: SubjectModel, saes: dict[SiteKind, Sae], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perplexity(model, token_ids(model), []) is None
    monkeypatch.setattr(type(model.tokenizer), "all_special_ids", list(range(342)))
    trial = sweep(model, saes["res"], 4.0)
    assert trial.plain.continuation.token_ids == ()
    assert trial.steered[0].perplexity is None


def test_much_of_a_feature_makes_the_model_write_what_it_would_not(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    trial = sweep(model, saes["res"], 0.0, 400.0)
    assert trial.steered[0].perplexity == trial.plain.perplexity
    assert (trial.steered[1].perplexity or 0) > 2 * (trial.plain.perplexity or math.inf)


@pytest.mark.parametrize("seed", [None, 7])
def test_each_strength_writes_what_it_writes_alone(
    model: SubjectModel, saes: dict[SiteKind, Sae], seed: int | None
) -> None:
    sae = saes["mlp"]
    trial = sweep(model, sae, -6.0, 0.0, 6.0, seed=seed)
    for strength, written in zip((-6.0, 0.0, 6.0), trial.steered, strict=True):
        alone = compare_steered(model, sae, 3, strength, PROMPT, N_TOKENS, seed)
        assert written.continuation.token_ids == alone.steered.token_ids
        assert torch.equal(written.continuation.probabilities, alone.steered.probabilities)
        assert trial.plain.continuation.token_ids == alone.plain.token_ids
        assert trial.prompt == alone.prompt


@pytest.mark.parametrize("kind", KINDS)
def test_a_one_token_prompt_clamped_to_its_own_value_has_the_very_same_next_tokens(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae = saes[kind]
    silent = [FeatureChange(sae, feature, "ablate") for feature in range(sae.width)]
    own = [each.before for each in try_changes(model, [silent], "e", 1).steered[0].readings]
    assert any(value for (value,) in own)
    changes = [FeatureChange(sae, n, "clamp", value) for n, (value,) in enumerate(own)]
    trial = try_changes(model, [changes, silent], "e", 1)
    kept, ablated = (it.continuation.probabilities for it in trial.steered)
    assert torch.equal(kept, trial.plain.continuation.probabilities)
    assert not torch.allclose(ablated, trial.plain.continuation.probabilities, atol=1e-4)


@pytest.mark.parametrize("with_bos", [False, True])
def test_readings_are_of_the_prompts_tokens_alone(
    model: SubjectModel, saes: dict[SiteKind, Sae], with_bos: bool
) -> None:
    sae = saes["res"]
    changes = [[FeatureChange(sae, 3, "clamp", 5.0), HeldNeuron(1, 2, 4.0)]]
    trial = try_changes(model, changes, PROMPT, N_TOKENS, with_bos=with_bos)
    assert trial.plain.readings == ()
    feature, neuron = trial.steered[0].readings
    assert len(feature.before) == len(feature.after or ()) == len(trial.prompt)
    assert neuron.after == (4.0,) * len(trial.prompt)
    ids = torch.tensor([token_ids(model)])
    x = model.read_sites(ids, [sae.site, HeldNeuron(1, 2, 0.0).site])
    # The neuron is held before the feature's site, at the end of the layer.
    assert neuron.before == pytest.approx(
        x[HeldNeuron(1, 2, 0.0).site][0, 1:, 2].tolist(), abs=1e-5
    )


def test_of_a_transcoder_nothing_is_read_back(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    (reading,) = sweep(model, saes["transcoder"], 3.0).steered[0].readings
    assert reading.after is None
    assert len(reading.before) == len(token_ids(model)) - 1


def test_bos_is_changed_only_where_that_is_asked(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    without, with_bos = (
        sweep(model, saes["res"], 30.0, with_bos=it).steered[0] for it in (False, True)
    )
    assert not torch.allclose(
        without.continuation.probabilities, with_bos.continuation.probabilities, rtol=1e-3, atol=0
    )


def test_a_strength_that_overflows_a_long_prompt_and_an_empty_one_are_refused(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    with pytest.raises(UserMistake, match="no numbers any more"):
        sweep(model, saes["res"], 1.0, 1e38)
    for prompt, words in (("a " * 1100, "longer than what the model sees"), ("", "empty")):
        with pytest.raises(UserMistake, match=words):
            try_changes(model, [], prompt, N_TOKENS)


def test_a_neuron_beyond_the_width_is_refused(model: SubjectModel) -> None:
    with pytest.raises(UserMistake, match="no neuron 16"):
        try_changes(model, [[HeldNeuron(1, 16, 3.0)]], PROMPT, N_TOKENS)


def test_a_model_with_a_head_of_its_own_says_so(folder: Path) -> None:
    untied = load_model(str(folder), [], "cpu", "float32")
    untied.config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="head that is not loaded"):
        try_changes(untied, [], PROMPT, N_TOKENS)
