"""What can be done to the full model, against Gemma 2 written out by hand, without hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scopenote.extract.feature_changes import ChangeMode, FeatureChange, HeldNeuron
from scopenote.extract.golden import (
    FullModel,
    changed_probabilities,
    lens_probabilities,
    load_full_model,
    measure_text_fidelity,
    next_token_probabilities,
    read_site,
)
from scopenote.extract.local_files import find_local_model
from scopenote.extract.models import TOY
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site, SiteKind
from scopenote.extract.splicing import splice
from scopenote.store.errors import ModelError
from torch import Tensor

from .test_sites import plain_gemma2, rms_norm
from .tiny_gemma import BOS, save_tiny_gemma, save_tiny_sae, site_inputs

PROMPT = "the thing in a ring"
IDS = torch.tensor([[BOS, 336, 264, 262, 281, 338, 280, 263, 276, 280, 261, 300]])
CHANGED_KINDS: tuple[SiteKind, ...] = ("res", "mlp", "att")
LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(
        tmp_path_factory.mktemp("model") / "tiny", layers=LAYERS, heads=4, kv_heads=2
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> FullModel:
    loaded = load_full_model(folder)
    # So low that it bends the small logits of a tiny model.
    loaded.network.config.final_logit_softcapping = 2.0
    return loaded


@pytest.fixture(scope="module")
def mlp_sae(folder: Path, model: FullModel, tmp_path_factory: pytest.TempPathFactory) -> Sae:
    inputs = site_inputs(folder, "mlp", 1)
    file = save_tiny_sae(tmp_path_factory.mktemp("saes"), "mlp", 1, 64, 16, inputs=inputs)
    return load_sae(locate_sae(str(file), "tiny"), model.network.config)


@pytest.fixture(scope="module")
def toy() -> FullModel:
    folder = find_local_model(TOY)
    assert folder is not None
    return load_full_model(folder)


def plain(
    model: FullModel,
    changes: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    ids: Tensor = IDS,
) -> dict[Site, Tensor]:
    weights = model.network.model.state_dict()
    return plain_gemma2(weights, model.network.config, ids[0], changes or {})


def plain_head(model: FullModel, residual: Tensor) -> Tensor:
    """Final norm, tied head, soft cap and softmax of the last position, written out."""
    config = model.network.config
    weights = {name: w.double() for name, w in model.network.model.state_dict().items()}
    normed = rms_norm(residual[-1], weights["norm.weight"], config.rms_norm_eps)
    logits = weights["embed_tokens.weight"] @ normed
    cap = config.final_logit_softcapping
    exponentials = (cap * torch.tanh(logits / cap)).exp()
    return exponentials / exponentials.sum()


def plain_probabilities(
    model: FullModel,
    changes: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    ids: Tensor = IDS,
) -> Tensor:
    return plain_head(model, plain(model, changes, ids)[Site(LAYERS - 1, "res")])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-6)


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one.double() - other.double()).abs().max() > 1e-3)


def test_probabilities_are_those_of_a_plain_gemma_2_with_its_soft_cap(model: FullModel) -> None:
    found = next_token_probabilities(model, IDS)
    close(found, plain_probabilities(model))
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    without_cap = plain(model)[Site(LAYERS - 1, "res")]
    network = model.network
    normed = rms_norm(without_cap[-1], network.model.norm.weight, 1e-6)
    logits = network.model.embed_tokens.weight.double() @ normed
    assert differ(found, logits.softmax(-1)), "the soft cap does not bend anything here"


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_lens_reads_the_residual_after_its_layer(model: FullModel, layer: int) -> None:
    residuals = plain(model)
    close(lens_probabilities(model, IDS, layer), plain_head(model, residuals[Site(layer, "res")]))
    others = [n for n in range(LAYERS) if n != layer]
    for other in others:
        wrong = plain_head(model, residuals[Site(other, "res")])
        assert differ(lens_probabilities(model, IDS, layer), wrong)


def test_the_lens_after_the_last_layer_is_the_prediction(model: FullModel) -> None:
    close(lens_probabilities(model, IDS, LAYERS - 1), next_token_probabilities(model, IDS))


@pytest.mark.parametrize("value", [8.0, -8.0])
def test_holding_a_neuron_is_what_a_forward_pass_layer_by_layer_gives(
    model: FullModel, value: float
) -> None:
    def held(x: Tensor) -> Tensor:
        return torch.cat([x[:, :5], torch.full_like(x[:, :1], value), x[:, 6:]], dim=1)

    def found(layer: int, at: float) -> Tensor:
        return changed_probabilities(model, PROMPT, [HeldNeuron(layer, 5, at)])

    ids = model.encode(PROMPT)
    close(found(1, value), plain_probabilities(model, {Site(1, "mlp"): held}, ids))
    assert differ(found(1, value), changed_probabilities(model, PROMPT, []))
    assert differ(found(1, value), found(1, -value))
    assert differ(found(1, value), found(2, value))


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
@pytest.mark.parametrize("kind", CHANGED_KINDS)
def test_steering_is_what_a_forward_pass_layer_by_layer_gives(
    model: FullModel, mlp_sae: Sae, kind: SiteKind, mode: ChangeMode
) -> None:
    site = Site(1, kind)
    generator = torch.Generator().manual_seed(0)
    width = 48 if kind == "att" else 16
    sae = replace(
        identity_sae(mlp_sae, width),
        source=replace(mlp_sae.source, site=site),
        decoder=5 * torch.randn(2 * width, width, generator=generator),
    )
    ids = model.encode(PROMPT)
    feature = int(plain(model, ids=ids)[site][-1].argmax())

    def changed(x: Tensor) -> Tensor:
        f = x[:, feature].relu()
        amounts = {"add": torch.full_like(f, 3.0), "clamp": 3.0 - f, "ablate": -f}[mode]
        return x + amounts[:, None] * sae.decoder[feature].double()

    found = changed_probabilities(model, PROMPT, [FeatureChange(sae, feature, mode, 3.0)])
    close(found, plain_probabilities(model, {site: changed}, ids))
    assert not torch.allclose(found, next_token_probabilities(model, ids), rtol=1e-3, atol=0)


def test_a_change_holds_for_bos_too(model: FullModel, mlp_sae: Sae) -> None:
    site = Site(1, "mlp")
    direction = mlp_sae.decoder[3].double()

    def but_bos(x: Tensor) -> Tensor:
        return torch.cat([x[:1], x[1:] + 9.0 * direction])

    found = changed_probabilities(model, "a", [FeatureChange(mlp_sae, 3, "add", 9.0)])
    ids = model.encode("a")
    close(found, plain_probabilities(model, {site: lambda x: x + 9.0 * direction}, ids))
    assert differ(found, plain_probabilities(model, {site: but_bos}, ids))


def test_without_changes_both_heads_say_the_same(model: FullModel) -> None:
    close(
        changed_probabilities(model, PROMPT, []),
        next_token_probabilities(model, model.encode(PROMPT)),
    )


def test_splicing_is_what_a_forward_pass_layer_by_layer_gives(
    model: FullModel, mlp_sae: Sae
) -> None:
    weights = {
        name: getattr(mlp_sae, name).double()
        for name in ("encoder", "encoder_bias", "threshold", "decoder", "decoder_bias")
    }

    def reconstruct(x: Tensor) -> Tensor:
        pre = x @ weights["encoder"].T + weights["encoder_bias"]
        return pre * (pre > weights["threshold"]) @ weights["decoder"] + weights["decoder_bias"]

    found = next_token_probabilities(model, IDS, mlp_sae.site, splice(mlp_sae))
    close(found, plain_probabilities(model, {mlp_sae.site: reconstruct}))
    assert differ(found, next_token_probabilities(model, IDS))


def identity_sae(like: Sae, d_in: int) -> Sae:
    """An SAE of 2 d_in features, x and -x rectified, that loses nothing."""
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    return replace(
        like,
        encoder=both,
        decoder=both.clone(),
        encoder_bias=torch.zeros(2 * d_in),
        threshold=torch.zeros(2 * d_in),
        decoder_bias=torch.zeros(d_in),
    )


def test_splicing_in_an_sae_that_loses_nothing_is_the_baseline(
    model: FullModel, mlp_sae: Sae
) -> None:
    found = next_token_probabilities(model, IDS, mlp_sae.site, splice(identity_sae(mlp_sae, 16)))
    close(found, next_token_probabilities(model, IDS))


def test_a_change_ends_with_its_pass(model: FullModel) -> None:
    before = next_token_probabilities(model, IDS)
    next_token_probabilities(model, IDS, Site(1, "res"), lambda x: x + 50.0)
    assert torch.equal(next_token_probabilities(model, IDS), before)

    def breaks(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next_token_probabilities(model, IDS, Site(1, "res"), breaks)
    assert torch.equal(next_token_probabilities(model, IDS), before)


def test_sites_are_read_as_they_are_written_out_by_hand(model: FullModel) -> None:
    for site, expected in plain(model).items():
        torch.testing.assert_close(
            read_site(model, IDS, site).double(), expected, rtol=1e-4, atol=1e-4, msg=str(site)
        )


@pytest.mark.parametrize("kind", ["mlp", "transcoder"])
def test_fidelity_is_counted_token_by_token(model: FullModel, mlp_sae: Sae, kind: SiteKind) -> None:
    x = read_site(model, IDS, Site(1, kind))[1:]
    # What the MLP adds: of an SAE of the MLP what it reads, of a transcoder what it predicts.
    target = read_site(model, IDS, Site(1, "mlp"))[1:]
    found = measure_text_fidelity(mlp_sae, x, target)
    n_firing, unexplained, variance, overall = 0, 0.0, 0.0, 0.0
    for row, wanted in zip(x.double(), target.double(), strict=True):
        pre = mlp_sae.encoder.double() @ row + mlp_sae.encoder_bias
        f = torch.where(pre > mlp_sae.threshold, pre, 0.0)
        n_firing += int((f > 0).sum())
        error = wanted - f @ mlp_sae.decoder.double() - mlp_sae.decoder_bias
        unexplained += float(error @ error)
        centred = wanted - target.double().mean(0)
        variance += float(centred @ centred)
        overall += float((wanted - target.double().mean()).square().sum())
    assert found.mean_l0 == pytest.approx(n_firing / len(x))
    assert found.fvu == pytest.approx(unexplained / variance, rel=1e-5)
    explained = 1 - unexplained / x.numel() / (overall / (x.numel() - 1))
    assert found.explained == pytest.approx(explained, rel=1e-5)
    assert found.fvu > 1 - found.explained


def test_the_toy_has_the_same_head_as_transformers_gives_it(toy: FullModel) -> None:
    ids = toy.encode("def read(self, path):")
    assert ids[0, 0] == toy.tokenizer.bos_token_id
    assert "".join(toy.pieces(ids)) == toy.tokenizer.bos_token + "def read(self, path):"
    with torch.inference_mode():
        logits = toy.network(input_ids=ids).logits[0, -1]
    close(next_token_probabilities(toy, ids), logits.softmax(-1))
    close(lens_probabilities(toy, ids, 2), logits.softmax(-1))


def test_a_token_is_found_by_how_it_reads(toy: FullModel) -> None:
    assert toy.pieces(torch.tensor([[toy.token_id(" the")]])) == [" the"]
    with pytest.raises(ModelError, match="lacks a token"):
        toy.token_id(" antidisestablishmentarianism")


def test_a_folder_without_a_model_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_full_model(tmp_path)


def test_a_model_without_some_of_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lack weights"):
        load_full_model(tmp_path)
