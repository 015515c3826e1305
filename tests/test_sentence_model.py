"""Sentences as vectors: the pooling beside plain arithmetic, and the model of the extra."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scopenote.flows.search_settings import SearchSection
from scopenote.label.sentence_model import (
    load_sentence_model,
    local_model_name,
    packaged_folder,
)
from scopenote.store.errors import ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "doubt", "of", "city", "names", "law"]
POOLING = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence model of random weights, in the layout of sentence-transformers."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-sentences")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    lay_out(folder, POOLING)
    return folder


def lay_out(folder: Path, pooling: dict[str, bool], *more: str) -> None:
    kinds = ("Transformer", "Pooling", "Normalize", *more)
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


TEXTS = ["doubt of law", "city", "names of city names of law doubt", "", "unheard of"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_vector_is_the_pooled_tokens_at_length_one_whatever_else_is_in_the_batch(
    tiny: Path, pooling: str
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    modes = {
        f"pooling_mode_{name}": name.startswith(pooling) for name in ("mean_tokens", "cls_token")
    }
    lay_out(tiny, modes)
    found = load_sentence_model(str(tiny), "cpu").encode(TEXTS)
    tokenizer, network = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            states = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        expected = states.mean(0) if pooling == "mean" else states[0]
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)
    lay_out(tiny, POOLING)


def test_what_is_longer_than_the_model_takes_is_cut_off(tiny: Path) -> None:
    model = load_sentence_model(str(tiny), "cpu")
    assert model.longest_tokens == 24
    long, longer = model.encode(["doubt " * 100, "doubt " * 200])
    np.testing.assert_allclose(long, longer, atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "more", "said"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling by pooling_mode_max_tokens"),
        (POOLING, ("Dense",), "layers of the kind Dense"),
    ],
)
def test_models_that_work_in_another_way_are_refused(
    tiny: Path, pooling: dict[str, bool], more: tuple[str, ...], said: str
) -> None:
    lay_out(tiny, pooling, *more)
    with pytest.raises(ModelError, match=said):
        load_sentence_model(str(tiny), "cpu")
    lay_out(tiny, POOLING)


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be used"):
        load_sentence_model(str(tmp_path), "cpu")


def test_a_folder_of_other_content_is_another_model(tiny: Path, tmp_path: Path) -> None:
    name = local_model_name(str(tiny))
    assert name.startswith(f"local/{tiny.name}-")
    before = (tiny / "config.json").read_bytes()
    (tiny / "config.json").write_bytes(before + b"\n")
    assert local_model_name(str(tiny)) != name
    (tiny / "config.json").write_bytes(before)
    assert local_model_name(str(tiny)) == name
    assert local_model_name("someone/sentences") == "local/someone/sentences"


def test_a_model_named_as_local_is_not_asked_of_an_endpoint(tiny: Path, tmp_path: Path) -> None:
    embedder = SearchSection(model=str(tiny), local=True).embedder(tmp_path)
    assert embedder is not None and embedder.model == local_model_name(str(tiny))
    (vector,) = embedder.embed(["doubt"])
    assert np.shape(vector) == (16,)


@pytest.mark.slow
@pytest.mark.skipif(packaged_folder() is None, reason="the extra `search` is not installed")
def test_the_model_of_the_extra_knows_synonyms() -> None:
    model = load_sentence_model(None, "cpu")
    doubt, hesitant, cities = model.encode(
        ["expressions of doubt", "sceptical or hesitant remarks", "names of French cities"]
    )
    assert doubt.shape == (384,)
    assert doubt @ hesitant > 0.4
    assert doubt @ cities < 0.1
