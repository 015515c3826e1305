"""Directions of features in the residual stream, and which of them agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scopenote.extract import decoder_spaces as module
from scopenote.extract.decoder_spaces import (
    cosines,
    differing_shape,
    needs_model,
    residual_directions,
)
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.saes import Sae
from scopenote.extract.sites import SiteKind

from .test_inspection import make_sae
from .tiny_gemma import save_tiny_gemma, tiny_config, tiny_gemma_3_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SubjectModel:
    folder = save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny")
    return load_model(str(folder), [], "cpu", "float32")


def with_decoder(sae: Sae, rows: torch.Tensor) -> Sae:
    return replace(sae, decoder=rows)


def by_hand(model: SubjectModel, sae: Sae, feature: int) -> np.ndarray:
    """What one more unit of the feature adds to the stream; of attention as long as the norm
    divides by nothing."""
    row = sae.decoder[feature].double().numpy()
    if sae.target.kind == "embedding":
        return row * np.sqrt(len(row))
    if sae.target.kind != "att":
        return row
    layer = model.network.layers[sae.target.layer]
    through = layer.self_attn.o_proj.weight.detach().double().numpy() @ row
    return through * (1 + layer.post_attention_layernorm.weight.detach().double().numpy())


@pytest.mark.parametrize("kind", ["res", "mlp", "att", "transcoder", "embedding"])
@pytest.mark.parametrize("other_kind", ["res", "att"])
def test_cosines_are_those_of_the_directions_by_hand(
    model: SubjectModel,
    kind: SiteKind,
    other_kind: SiteKind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FEATURES_AT_ONCE", 7)
    own, other = make_sae(model, kind), make_sae(model, other_kind, layer=2)
    found = cosines(own, 5, other, model, model)
    mine = by_hand(model, own, 5)
    for feature in range(other.width):
        theirs = by_hand(model, other, feature)
        expected = mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs)
        assert float(found[feature]) == pytest.approx(expected, abs=1e-5)


def test_attention_reaches_the_stream_where_the_model_takes_it(model: SubjectModel) -> None:
    """A change of the heads along a row changes the stream along its direction, up to a factor."""
    sae, layer = make_sae(model, "att"), model.network.layers[1]
    seen: list[torch.Tensor] = []
    handle = layer.post_attention_layernorm.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.detach())
    )
    heads = torch.zeros(1, 1, sae.decoder.shape[1])
    heads[0, 0] = sae.decoder[3]
    try:
        with torch.inference_mode():
            layer.post_attention_layernorm(layer.self_attn.o_proj(heads))
    finally:
        handle.remove()
    added = seen[0][0, 0]
    direction = residual_directions(sae, range(3, 4), model)[0]
    assert float(torch.cosine_similarity(added, direction, dim=0)) == pytest.approx(1, abs=1e-5)


def test_a_feature_has_cosine_1_with_itself_in_an_identical_sae(model: SubjectModel) -> None:
    for kind in ("res", "mlp", "att"):
        sae = make_sae(model, kind)
        found = cosines(sae, 4, with_decoder(sae, sae.decoder.clone()))
        assert int(found.argmax()) == 4
        assert float(found[4]) == pytest.approx(1, abs=1e-6)


def test_a_planted_permutation_is_found(model: SubjectModel) -> None:
    own, other = make_sae(model, "res"), make_sae(model, "mlp", layer=2)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    shuffled = 3.0 * own.decoder[order] + 0.05 * own.decoder.std() * noise
    for feature in range(24):
        found = cosines(own, feature, with_decoder(other, shuffled))
        assert int(order[int(found.argmax())]) == feature
        assert float(found.max()) > 0.98


def test_a_residual_feature_that_an_attention_head_writes_is_found(model: SubjectModel) -> None:
    att, res = make_sae(model, "att"), make_sae(model, "res")
    rows = res.decoder.clone()
    rows[9] = residual_directions(att, range(2, 3), model)[0]
    found = cosines(att, 2, with_decoder(res, rows), model, model)
    assert float(found[9]) == pytest.approx(1, abs=1e-5)
    assert int(found.argmax()) == 9


def test_attention_of_one_layer_is_compared_among_the_heads(model: SubjectModel) -> None:
    one = make_sae(model, "att")
    other = with_decoder(one, torch.flip(one.decoder, dims=[0]))
    assert not needs_model(one, other)
    assert int(cosines(one, 0, other).argmax()) == one.width - 1
    assert needs_model(one, make_sae(model, "att", layer=2))
    assert needs_model(make_sae(model, "res"), one)
    assert not needs_model(make_sae(model, "res"), make_sae(model, "mlp", layer=2))
    with pytest.raises(ValueError, match="only its model says"):
        residual_directions(one, range(1), None)


def test_a_feature_without_a_direction_has_no_cosine(model: SubjectModel) -> None:
    sae = make_sae(model, "res")
    rows = sae.decoder.clone()
    rows[3] = 0
    found = cosines(sae, 1, with_decoder(sae, rows))
    assert torch.isnan(found).tolist() == [number == 3 for number in range(24)]
    assert torch.isnan(cosines(with_decoder(sae, rows), 3, sae)).all()


def test_models_of_other_shapes_share_no_space() -> None:
    assert differing_shape(tiny_config(), tiny_config()) is None
    assert "hidden_size is 16 in the one and 32 in the other" in str(
        differing_shape(tiny_config(), tiny_config(hidden=32))
    )
    assert "model_type" in str(differing_shape(tiny_config(), tiny_gemma_3_config()))
