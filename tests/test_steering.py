"""A feature turned up while the model writes, against Gemma 2 by hand and transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.saes import Sae
from scopenote.extract.sites import Site, SiteKind, hook_site, site_width
from scopenote.extract.steering import Comparison, compare_steered, continue_prompt, steered
from scopenote.store.errors import ModelError, UserMistake
from torch import Tensor
from transformers import AutoModelForCausalLM

from .test_sites import plain_gemma2
from .tiny_gemma import BOS, sae_arrays, save_tiny_gemma

FEATURE, STRENGTH, LAYER = 3, 2.5, 1
PROMPT = "the thing in a ring"
GENERATIONS = [pytest.param(2, id="gemma-2"), pytest.param(3, id="gemma-3", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=GENERATIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generation: Literal[2, 3] = request.param
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny", generation=generation)


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), [], "cpu", "float32")


def make_sae(model: SubjectModel, kind: SiteKind) -> Sae:
    """Of random directions; a transcoder is as wide as the residual stream on both sides."""
    site = Site(LAYER, kind)
    weights = {
        name: torch.from_numpy(array)
        for name, array in sae_arrays(24, site_width(site, model.config)).items()
    }
    return Sae(
        SaeSource(f"tiny/{LAYER}-{kind}", None, site, None, "made up"),
        weights["W_enc"].T.contiguous(),
        weights["b_enc"],
        weights["threshold"],
        weights["W_dec"],
        weights["b_dec"],
        content_hash="0",
    )


def token_ids(model: SubjectModel, text: str = PROMPT) -> list[int]:
    return [BOS, *model.tokenizer(text, add_special_tokens=False).input_ids]


def read_while_steered(model: SubjectModel, sae: Sae, strength: float, site: Site) -> Tensor:
    """A site's vectors, as those after it have them."""
    seen: list[Tensor] = []
    with torch.inference_mode(), steered(model, sae, FEATURE, strength):
        handle = hook_site(model.network, site, seen.append)
        try:
            model.network(input_ids=torch.tensor([token_ids(model)]), use_cache=False)
        finally:
            handle.remove()
    (x,) = seen
    return x[0]


@pytest.mark.parametrize("kind", ["res", "mlp", "att"])
def test_the_pre_activation_rises_by_strength_times_decoder_times_encoder(
    model: SubjectModel, kind: SiteKind
) -> None:
    sae = make_sae(model, kind)
    before, after = (
        read_while_steered(model, sae, strength, sae.site) @ sae.encoder.T
        for strength in (0.0, STRENGTH)
    )
    expected = STRENGTH * sae.encoder @ sae.decoder[FEATURE]
    assert abs(expected[FEATURE]) > 0.1
    torch.testing.assert_close(after - before, expected.expand_as(after), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["res", "mlp", "att", "transcoder"])
def test_all_later_layers_see_what_a_plain_gemma_2_makes_of_it(
    model: SubjectModel, kind: SiteKind
) -> None:
    if model.config.model_type != "gemma2":
        pytest.skip("written out for Gemma 2")
    sae = make_sae(model, kind)
    shift = STRENGTH * sae.decoder[FEATURE].double()
    changes: dict[Site, Callable[[Tensor], Tensor]] = {sae.target: lambda x: x + shift}
    ids = torch.tensor(token_ids(model))
    weights = model.network.state_dict()
    expected = plain_gemma2(weights, model.config, ids, changes)
    unchanged = plain_gemma2(weights, model.config, ids)
    for layer in range(model.config.num_hidden_layers):
        site = Site(layer, "res")
        found = read_while_steered(model, sae, STRENGTH, site)
        torch.testing.assert_close(found.double(), expected[site], rtol=1e-4, atol=1e-4)
        assert torch.equal(expected[site], unchanged[site]) == (layer < LAYER)


def test_an_attention_feature_goes_through_the_output_projection(model: SubjectModel) -> None:
    sae = make_sae(model, "att")
    o_proj = model.network.layers[LAYER].self_attn.o_proj
    projected: list[Tensor] = []
    handle = o_proj.register_forward_hook(lambda _m, _x, output: projected.append(output))
    try:
        for strength in (0.0, STRENGTH):
            read_while_steered(model, sae, strength, Site(LAYER, "res"))
    finally:
        handle.remove()
    before, after = projected
    expected = STRENGTH * sae.decoder[FEATURE] @ o_proj.weight.detach().T
    torch.testing.assert_close(after - before, expected.expand_as(after), rtol=1e-4, atol=1e-5)


def test_what_is_added_is_gone_after_the_block(model: SubjectModel) -> None:
    sae = make_sae(model, "res")
    ids = torch.tensor([token_ids(model)])
    before = model.read_sites(ids, [sae.site])[sae.site]
    with steered(model, sae, FEATURE, STRENGTH):
        pass
    assert torch.equal(model.read_sites(ids, [sae.site])[sae.site], before)


# --- writing ----------------------------------------------------------------------------------


def compare(model: SubjectModel, sae: Sae, strength: float, seed: int | None = None) -> Comparison:
    return compare_steered(model, sae, FEATURE, strength, PROMPT, 12, seed)


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    """The whole model as transformers has it, with its own head."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def written_slowly(network: Any, model: SubjectModel, sae: Sae, strength: float) -> list[Tensor]:
    """The probabilities of each next token, everything read anew for each; BOS left alone."""

    def add(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[:, 1:] += strength * sae.decoder[FEATURE]
        return changed

    ids, found = token_ids(model), []
    handle = hook_site(network.model, sae.target, add)
    try:
        with torch.inference_mode():
            for _ in range(12):
                logits = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                found.append(logits.softmax(-1))
                ids.append(int(logits.argmax()))
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", ["res", "mlp", "att", "transcoder"])
def test_what_is_written_is_what_the_whole_model_writes_token_by_token(
    model: SubjectModel, network: Any, kind: SiteKind
) -> None:
    sae = make_sae(model, kind)
    found = compare(model, sae, STRENGTH)
    for side, strength in ((found.plain, 0.0), (found.steered, STRENGTH)):
        slowly = written_slowly(network, model, sae, strength)
        torch.testing.assert_close(side.probabilities, slowly[0], rtol=1e-4, atol=1e-6)
        assert list(side.token_ids) == [int(p.argmax()) for p in slowly][: len(side.token_ids)]
    assert not torch.allclose(found.plain.probabilities, found.steered.probabilities, atol=1e-4)


def test_what_is_written_without_a_feature_is_what_transformers_writes(
    model: SubjectModel, network: Any
) -> None:
    ids = token_ids(model)
    theirs = network.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    ours = continue_prompt(model, ids, 12)
    assert list(ours.token_ids) == theirs[0, len(ids) :].tolist()[: len(ours.token_ids)]


@pytest.mark.parametrize("seed", [None, 7])
def test_strength_0_changes_nothing(model: SubjectModel, seed: int | None) -> None:
    found = compare(model, make_sae(model, "res"), 0.0, seed)
    assert found.steered.token_ids == found.plain.token_ids
    assert torch.equal(found.steered.probabilities, found.plain.probabilities)


def test_the_same_seed_draws_the_same_tokens_and_another_one_others(model: SubjectModel) -> None:
    sae = make_sae(model, "res")
    first, again, other = (compare(model, sae, STRENGTH, seed) for seed in (7, 7, 8))
    assert first.steered.token_ids == again.steered.token_ids
    assert first.plain.token_ids == again.plain.token_ids
    assert first.plain.token_ids != other.plain.token_ids


def test_the_next_tokens_are_the_most_probable_of_either_side(model: SubjectModel) -> None:
    found = compare(model, make_sae(model, "res"), 5 * STRENGTH)
    assert 5 <= len(found.next_tokens) <= 10
    probabilities = [token.probability for token in found.next_tokens]
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] == float(found.plain.probabilities.max())
    of_steered = {token.steered_probability for token in found.next_tokens}
    assert set(found.steered.probabilities.topk(5).values.tolist()) <= of_steered


def test_a_special_token_ends_the_text_and_is_not_shown(
    model: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = continue_prompt(model, token_ids(model), 12, seed=7)
    assert not written.has_ended
    place = next(
        n for n, token in enumerate(written.token_ids) if n and token not in written.token_ids[:n]
    )
    special = [*model.tokenizer.all_special_ids, written.token_ids[place]]
    monkeypatch.setattr(type(model.tokenizer), "all_special_ids", special)
    found = continue_prompt(model, token_ids(model), 12, seed=7)
    assert found.has_ended
    assert found.token_ids == written.token_ids[:place]


def test_a_special_token_spelled_in_the_prompt_is_text(model: SubjectModel) -> None:
    found = compare_steered(model, make_sae(model, "res"), FEATURE, 0.0, "a <eos>", 1)
    assert "<eos>" not in found.prompt
    assert "".join(found.prompt) == "a <eos>"


def test_attention_is_put_back_after_writing(model: SubjectModel) -> None:
    before = model.network.config._attn_implementation
    ids = torch.tensor([token_ids(model)])
    site = Site(LAYER, "res")
    read = model.read_sites(ids, [site])[site]
    compare(model, make_sae(model, "res"), STRENGTH)
    assert model.network.config._attn_implementation == before
    assert torch.equal(model.read_sites(ids, [site])[site], read)


def test_a_prompt_beyond_the_models_context_is_refused(model: SubjectModel) -> None:
    with pytest.raises(UserMistake, match="longer than what the model sees") as caught:
        compare_steered(model, make_sae(model, "res"), FEATURE, 0.0, "a " * 1100, 64)
    assert "at most 1,983" in str(caught.value)


def test_an_empty_prompt_is_refused(model: SubjectModel) -> None:
    with pytest.raises(UserMistake, match="empty"):
        compare_steered(model, make_sae(model, "res"), FEATURE, 0.0, "", 4)


def test_a_model_driven_beyond_finite_numbers_says_so(model: SubjectModel) -> None:
    with pytest.raises(UserMistake, match="no numbers any more"):
        compare(model, make_sae(model, "res"), 1e39)


def test_a_model_with_a_head_of_its_own_says_so(folder: Path) -> None:
    untied = load_model(str(folder), [], "cpu", "float32")
    untied.config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="head that is not loaded"):
        compare(untied, make_sae(untied, "res"), 0.0)
