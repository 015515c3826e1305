"""The logit lens against the model's own output, and against Gemma 2 by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scopenote.extract import logit_lens
from scopenote.extract.attention import BLOCKED_ATTENTION
from scopenote.extract.logit_effects import unembedding
from scopenote.extract.logit_lens import lens_distributions, lens_sites, read_lens
from scopenote.extract.models import TOY, SubjectModel, load_model, model_path
from scopenote.extract.sites import Site
from torch import Tensor
from transformers import AutoModelForCausalLM

from .tiny_gemma import BOS, save_tiny_gemma

IDS = torch.tensor([[BOS, 336, 264, 262, 281, 338, 280, 263, 276, 280, 261, 300]])
GENERATIONS = [pytest.param(2, id="gemma-2"), pytest.param(3, id="gemma-3", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=GENERATIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generation: Literal[2, 3] = request.param
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny", generation=generation)


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), [], "cpu", "float32")


def vectors_of(model: SubjectModel) -> dict[Site, Tensor]:
    read = model.read_sites(IDS % model.config.vocab_size, lens_sites(model))
    return {site: x[0] for site, x in read.items()}


def whole_network(source: str, dtype: torch.dtype) -> Any:
    """The model with its head, as transformers has it, attending as Scopenote does."""
    network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager")
    network.set_attn_implementation(BLOCKED_ATTENTION)
    return network.eval()


def last_layer(model: SubjectModel) -> Tensor:
    head = unembedding(model)
    assert head is not None
    cap = model.config.final_logit_softcapping
    last = lens_sites(model)[-1]
    return lens_distributions(vectors_of(model)[last], model.network.norm, head, cap)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_the_last_layer_it_is_the_models_own_distribution_exactly(
    folder: Path, dtype: str
) -> None:
    model = load_model(str(folder), [], "cpu", dtype)
    network = whole_network(str(folder), model.network.dtype)
    with torch.inference_mode():
        own = network(input_ids=IDS).logits[0].float().softmax(-1)
    assert torch.equal(last_layer(model), own)


def test_after_the_last_layer_it_is_the_toys_own_distribution_exactly() -> None:
    model = load_model(TOY, [], "cpu", "float32")
    with torch.inference_mode():
        network = whole_network(model_path(TOY), torch.float32)
        own = network(input_ids=IDS).logits[0].softmax(-1)
    assert torch.equal(last_layer(model), own)


def test_each_layer_is_norm_unembedding_and_soft_cap(model: SubjectModel) -> None:
    vectors = vectors_of(model)
    lens = read_lens(model, vectors, 5)
    assert lens is not None
    assert lens.token_id.shape == (3, IDS.shape[1], 5)
    gain = 1 + model.network.norm.weight.detach().double().numpy()
    head = model.network.embed_tokens.weight.detach().double().numpy()
    cap = model.config.final_logit_softcapping
    for layer in range(3):
        for place, x in enumerate(vectors[Site(layer, "res")].double().numpy()):
            normed = x / np.sqrt((x**2).mean() + model.config.rms_norm_eps) * gain
            logits = head @ normed
            if cap is not None:
                logits = cap * np.tanh(logits / cap)
            probability = np.exp(logits) / np.exp(logits).sum()
            best = np.argsort(-probability)[:5]
            assert lens.token_id[layer, place].tolist() == best.tolist()
            np.testing.assert_allclose(lens.probability[layer, place], probability[best], rtol=1e-4)


def test_a_long_text_is_read_in_blocks(
    model: SubjectModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_lens(model, vectors_of(model), 4)
    monkeypatch.setattr(logit_lens, "_LOGITS_AT_ONCE", 5 * model.config.vocab_size)
    in_blocks = read_lens(model, vectors_of(model), 4)
    assert whole is not None and in_blocks is not None
    np.testing.assert_array_equal(in_blocks.token_id, whole.token_id)
    np.testing.assert_allclose(in_blocks.probability, whole.probability, rtol=1e-5)


def test_a_model_with_a_head_of_its_own_has_none(folder: Path) -> None:
    untied = load_model(str(folder), [], "cpu", "float32")
    untied.config.tie_word_embeddings = False
    assert read_lens(untied, vectors_of(untied), 4) is None
