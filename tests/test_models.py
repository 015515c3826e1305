"""Loading the model: what is refused and why, how quietly, and what its tokens say."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from scopenote.extract.models import (
    choose_device,
    choose_dtype,
    load_model,
    load_token_pieces,
    model_name,
)
from scopenote.extract.sites import Site
from scopenote.store.errors import ModelError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, Gemma3Config, GPT2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from .tiny_gemma import (
    BOS,
    hearing_transformers,
    save_tiny_gemma,
    tiny_gemma_3_config,
    tiny_tokenizer,
)

SITES = [Site(1, "res")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(tmp_path_factory.mktemp("shared") / "tiny-gemma-2")


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(shared, tmp_path / "tiny-gemma-2"))


# --- what is refused ----------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(str(tmp_path / "no-such-model"), SITES)
    assert "no-such-model" in str(refused.value)
    assert "there is no folder of that name" in str(refused.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError) as refused:
        load_model(str(tmp_path / "empty"), SITES)
    assert str(tmp_path / "empty") in (refused.value.where or "")


def test_a_name_that_no_hub_could_have_is_an_error_of_the_user() -> None:
    with pytest.raises(ModelError) as refused:
        load_model("no such/model here", SITES)
    assert "no such/model here" in (refused.value.where or "")


def test_a_hub_that_cannot_be_reached_is_an_error_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand so on")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    with pytest.raises(ModelError) as refused:
        load_model("google/gemma-2-2b", SITES)
    assert refused.value.found == "We couldn't connect to 'https://huggingface.co'"
    assert "HF_TOKEN" in (refused.value.mend or "")


@pytest.mark.parametrize(
    "config", [GPT2Config(), LlamaConfig(), Gemma3Config()], ids=["gpt2", "llama", "gemma3"]
)
def test_a_model_other_than_gemma_is_refused_by_its_type(
    tmp_path: Path, config: GPT2Config | LlamaConfig | Gemma3Config
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as refused:
        load_model(str(tmp_path), SITES)
    assert refused.value.found == f"model_type {config.model_type!r}"
    assert refused.value.expected == "gemma2, gemma3_text"


def test_a_gemma_3_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    config = tiny_gemma_3_config()
    config.use_bidirectional_attention = True
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="with attention to later tokens"):
        load_model(str(tmp_path), SITES)


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_the_model_lacks_is_refused_with_those_it_has(
    shared: Path, layer: int
) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(str(shared), [Site(0, "res"), Site(layer, "mlp")])
    assert refused.value.what == f"The model has no layer {layer}."
    assert refused.value.expected == "a layer from 0 to 2"


@pytest.mark.parametrize("device", ["no-such-device", "cuda:9999"])
def test_a_device_that_cannot_be_used_is_refused(shared: Path, device: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(str(shared), SITES, device)
    assert refused.value.found == device


def test_a_type_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ModelError, match="float31"):
        choose_dtype("float31", torch.device("cpu"))


def test_the_cpu_computes_in_float32_unless_told_otherwise(shared: Path) -> None:
    assert choose_dtype("auto", choose_device("cpu")) == torch.float32
    assert load_model(str(shared), SITES, "cpu", "bfloat16").network.dtype == torch.bfloat16


def test_weights_cut_short_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="tiny-gemma-2"):
        load_model(str(folder), SITES)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": 14}))
    with pytest.raises(ModelError, match="tiny-gemma-2"):
        load_model(str(folder), SITES)


def test_weights_that_are_missing_are_not_filled_with_random_numbers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    more = {"num_hidden_layers": 4, "layer_types": [*config["layer_types"], "full_attention"]}
    (folder / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(ModelError) as refused:
        load_model(str(folder), [Site(3, "res")])
    assert "layers.3." in (refused.value.found or "")
    load_model(str(folder), [Site(2, "res")])


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tiny-gemma-2"):
        load_model(str(folder), SITES)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **specials: str) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)


def test_a_byte_level_tokenizer_is_refused_because_its_pieces_would_be_misread(
    folder: Path,
) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"<bos>": 0, "Ġ": 1, "a": 2}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    save_tokenizer(folder, tokenizer, bos_token="<bos>")
    with pytest.raises(ModelError) as refused:
        load_model(str(folder), SITES)
    assert "byte-level BPE" in (refused.value.found or "")


def test_a_tokenizer_without_bos_is_refused(folder: Path) -> None:
    save_tokenizer(folder, Tokenizer.from_file(str(folder / "tokenizer.json")), pad_token="<pad>")
    with pytest.raises(ModelError, match="no BOS token"):
        load_model(str(folder), SITES)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one-too-many>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError) as refused:
        load_model(str(folder), SITES)
    assert "token ids up to 342" in (refused.value.found or "")


# --- how it is loaded ---------------------------------------------------------------------


def test_loading_shows_no_bar_and_no_report_of_the_layers_left_out(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with hearing_transformers() as said:
        load_model(str(shared), [Site(0, "res")])
        assert (said, *capfd.readouterr()) == ([], "", "")
        # What would have been heard and seen:
        AutoModel.from_pretrained(shared, num_hidden_layers=1, layer_types=["full_attention"])
        assert "UNEXPECTED" in said[0]
        assert "Loading weights" in capfd.readouterr().err


def test_loading_leaves_the_messages_of_transformers_as_they_were(
    shared: Path, folder: Path
) -> None:
    hook = transformers_logging.set_tqdm_hook(None)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.INFO)
    try:
        load_model(str(shared), SITES)
        with pytest.raises(ModelError):
            load_model(str(shared), [Site(9, "res")])
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.set_tqdm_hook(hook) is None
    finally:
        transformers_logging.set_verbosity(before)
        transformers_logging.set_tqdm_hook(hook)


def test_a_model_is_called_by_its_last_name(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_name("google/gemma-2-2b") == "gemma-2-2b"
    assert model_name(f"{shared}/") == "tiny-gemma-2"
    assert model_name("toy") == "toy-gemma-2"
    monkeypatch.chdir(shared)
    assert model_name(".") == "tiny-gemma-2"


def test_a_copy_in_another_folder_is_the_same_model(shared: Path, folder: Path) -> None:
    assert folder != shared
    copy, original = load_model(str(folder), SITES), load_model(str(shared), SITES)
    assert copy.content_hash == original.content_hash


def test_another_configuration_is_another_model(shared: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_logit_softcapping": 3.0}))
    other, original = load_model(str(folder), SITES), load_model(str(shared), SITES)
    assert other.content_hash != original.content_hash


def test_the_configuration_is_that_of_the_whole_model(shared: Path) -> None:
    model = load_model(str(shared), [Site(0, "res")])
    assert (len(model.network.layers), model.config.num_hidden_layers) == (1, 3)


# --- tokens -------------------------------------------------------------------------------


def test_every_token_has_a_piece() -> None:
    ids = [token_id for token_id, _, _ in load_token_pieces(tiny_tokenizer())]
    assert ids == list(range(len(tiny_tokenizer())))


@pytest.mark.parametrize(
    ("token", "text", "content"),
    [
        ("<0x0A>", "\n", b"\n"),
        ("<0x41>", "A", b"A"),
        ("<0xE2>", "<0xE2>", b"\xe2"),
        ("▁", " ", b" "),
        ("▁the", " the", b" the"),
        ("é", "é", "é".encode()),
        ("<bos>", "<bos>", b"<bos>"),
    ],
)
def test_a_piece_reads_as_the_text_it_stands_for(token: str, text: str, content: bytes) -> None:
    tokenizer = tiny_tokenizer()
    pieces = {token_id: (text, content) for token_id, text, content in load_token_pieces(tokenizer)}
    assert pieces[tokenizer.get_vocab()[token]] == (text, content)


@pytest.mark.parametrize("text", ["the cat sings", "naïve – 日本\tx\r\n\n", " <bos>  é"])
def test_the_bytes_of_a_text_s_tokens_are_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    contents = {token_id: content for token_id, _, content in load_token_pieces(tokenizer)}
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert b"".join(contents[token_id] for token_id in ids).decode() == text
    assert BOS not in ids
