"""Output tokens: against a dense twin, and against what transformers' own modules do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scopenote.extract import logit_effects as module
from scopenote.extract.logit_effects import effects_table, logit_effects, output_directions
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site, SiteKind, site_width
from transformers import AutoModelForCausalLM

from .tiny_gemma import save_tiny_gemma, save_tiny_sae

WIDTH, LAYER = 24, 1
TOY = Path(module.__file__).parent / "toy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny-gemma-2")


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), [Site(LAYER, "res")], device="cpu")


def tiny_sae(folder: Path, model: SubjectModel, kind: SiteKind) -> Sae:
    d_in = site_width(Site(LAYER, kind), model.config)
    file = save_tiny_sae(folder, kind, LAYER, WIDTH, d_in)
    return load_sae(locate_sae(str(file), model.name), model.config)


def dense_logits(model: SubjectModel, sae: Sae) -> np.ndarray:
    """All features by all tokens, in float64, written down as the mathematics is."""
    network = model.network
    layer = network.layers[sae.site.layer]

    def array(weight: torch.Tensor) -> np.ndarray:
        return weight.detach().double().numpy()

    rows = array(sae.decoder)
    if sae.site.kind == "att":
        rows = rows @ array(layer.self_attn.o_proj.weight).T
        rows = rows @ np.diag(1 + array(layer.post_attention_layernorm.weight))
    folded = array(network.embed_tokens.weight) @ np.diag(1 + array(network.norm.weight))
    return rows @ folded.T


def assert_strongest(model: SubjectModel, sae: Sae, k: int) -> None:
    effects = logit_effects(model, sae, range(sae.width), k)
    assert effects is not None
    logits = dense_logits(model, sae)
    tolerance = 1e-5 * np.abs(logits).max()
    for sign, (values, tokens) in ((1, effects.raised), (-1, effects.lowered)):
        ranked = -np.sort(-sign * logits, axis=1)[:, :k]
        np.testing.assert_allclose(values, ranked, atol=tolerance)
        at_tokens = np.take_along_axis(sign * logits, tokens.numpy(), axis=1)
        np.testing.assert_allclose(values, at_tokens, atol=tolerance)
        assert all(len(set(row)) == k for row in tokens.tolist())


@pytest.mark.parametrize("kind", ["res", "mlp", "att"])
def test_the_tokens_are_those_of_the_dense_twin(
    kind: SiteKind, model: SubjectModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FEATURES_AT_ONCE", 7)
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 50)
    assert_strongest(model, tiny_sae(tmp_path, model, kind), k=10)


@pytest.mark.parametrize("kind", ["res", "mlp", "att"])
def test_the_toys_tokens_are_those_of_the_dense_twin(kind: SiteKind) -> None:
    (file,) = (TOY / "saes" / kind).rglob("params.npz")
    source = locate_sae(str(file), "toy-gemma-2")
    toy = load_model("toy", [source.site], device="cpu")
    assert_strongest(toy, load_sae(source, toy.config), k=10)


def test_a_cut_of_the_features_gives_the_same_rows(model: SubjectModel, tmp_path: Path) -> None:
    sae = tiny_sae(tmp_path, model, "res")
    whole = logit_effects(model, sae, range(WIDTH))
    part = logit_effects(model, sae, range(5, 9))
    assert whole is not None
    assert part is not None
    assert whole.raised.columns[5:9].equal(part.raised.columns)
    assert whole.lowered.columns[5:9].equal(part.lowered.columns)


def orthogonal(x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """x without its part along the direction: a small step there does not change its length."""
    return x - (x @ direction) / (direction @ direction) * direction


@pytest.mark.parametrize("kind", ["res", "att"])
def test_a_small_step_along_a_feature_changes_the_models_logits_as_told(
    kind: SiteKind, folder: Path, model: SubjectModel, tmp_path: Path
) -> None:
    """The derivative of transformers' own norms and head, where the norms' divisors stand still."""
    head = AutoModelForCausalLM.from_pretrained(folder)
    layer, norm = head.model.layers[LAYER], head.model.norm
    sae = tiny_sae(tmp_path, model, kind)
    generator = torch.Generator().manual_seed(0)

    def derivative(of: Any, direction: torch.Tensor) -> torch.Tensor:
        at = orthogonal(torch.randn(len(direction), generator=generator), direction)
        _, change = torch.func.jvp(of, (at,), (direction,))
        assert isinstance(change, torch.Tensor)
        return change

    change = sae.decoder[3]
    if kind == "att":
        written = layer.self_attn.o_proj(change).detach()
        change = derivative(layer.post_attention_layernorm, written)
    measured = derivative(lambda stream: head.lm_head(norm(stream)), change.detach()).detach()

    expected = torch.from_numpy(dense_logits(model, sae)[3]).float()
    divisor = (measured @ expected) / (expected @ expected)
    assert divisor > 0
    torch.testing.assert_close(measured, divisor * expected)
    told = logit_effects(model, sae, range(3, 4))
    assert told is not None
    assert told.raised.columns[0].tolist() == measured.topk(10).indices.tolist()
    assert told.lowered.columns[0].tolist() == (-measured).topk(10).indices.tolist()


def test_directions_of_residual_and_mlp_are_the_decoder_times_the_final_gain(
    model: SubjectModel, tmp_path: Path
) -> None:
    sae = tiny_sae(tmp_path, model, "mlp")
    gain = 1 + model.network.norm.weight.detach()
    assert output_directions(model, sae, range(2, 4)).equal(sae.decoder[2:4] * gain)


def test_a_transcoder_writes_as_the_mlp_does_and_the_embedding_is_scaled(
    model: SubjectModel, tmp_path: Path
) -> None:
    sae = tiny_sae(tmp_path, model, "res")

    def directions(kind: SiteKind) -> torch.Tensor:
        placed = replace(sae, source=replace(sae.source, site=Site(LAYER, kind)))
        return output_directions(model, placed, range(WIDTH))

    assert directions("transcoder").equal(directions("mlp"))
    assert directions("mlp_in").equal(directions("mlp"))
    torch.testing.assert_close(directions("embedding"), 16**0.5 * directions("res"))


def test_a_model_that_unties_its_unembedding_has_no_effects(
    model: SubjectModel, tmp_path: Path
) -> None:
    untied = replace(model, config=SimpleNamespace(tie_word_embeddings=False))
    assert logit_effects(untied, tiny_sae(tmp_path, model, "res"), range(2)) is None
    table = effects_table(range(2), None)
    assert table["token_ids_positive"].to_pylist() == [None, None]
    assert table["logits_negative"].to_pylist() == [None, None]


def test_rows_of_a_part_have_the_lowest_logits_with_their_own_sign(
    model: SubjectModel, tmp_path: Path
) -> None:
    sae = tiny_sae(tmp_path, model, "res")
    effects = logit_effects(model, sae, range(4, 6), k=3)
    (row, _) = effects_table(range(4, 6), effects).to_pylist()
    logits = dense_logits(model, sae)[4]
    assert row["feature"] == 4
    assert row["token_ids_negative"] == np.argsort(logits)[:3].tolist()
    assert row["logits_negative"] == pytest.approx(np.sort(logits)[:3], rel=1e-4)
    assert row["token_ids_positive"] == np.argsort(-logits)[:3].tolist()
    assert row["logits_positive"] == pytest.approx(-np.sort(-logits)[:3], rel=1e-4)
