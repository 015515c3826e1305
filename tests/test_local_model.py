"""Loading a model that writes labels: where it ends a reply, and what is refused and why."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError
from scopenote.label.local_client import LocalClient
from scopenote.label.local_model import load_local_model
from scopenote.store.errors import ModelError
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from .tiny_chat import CONTEXT_TOKENS, END, MORE_ENDS, chat_tokenizer, config_of, save_chat_model
from .tiny_gemma import EOS, hearing_transformers


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("shared") / "tiny-it", "gemma2")


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(shared, tmp_path / "tiny-it"))


def refusal(name: str | Path, device: str = "cpu") -> ModelError:
    with pytest.raises(ModelError) as refused:
        load_local_model(str(name), device)
    assert refused.value.mend or refused.value.expected
    return refused.value


def test_a_reply_ends_where_model_tokenizer_or_template_say_so(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hearing_transformers() as said:
        model = load_local_model(str(shared), "cpu")
    turn_end = chat_tokenizer(None).convert_tokens_to_ids(END)
    assert model.end_ids == {EOS, *MORE_ENDS, turn_end}
    assert model.context_tokens == CONTEXT_TOKENS
    assert said == []
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "no-such-model")
    assert "no-such-model" in str(error)
    assert "there is no folder of that name" in str(error)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in (refusal(tmp_path / "empty").where or "")


def test_a_model_that_is_not_at_hand_says_how_to_get_it() -> None:
    error = refusal("nobody/has-this-model")
    assert "nobody/has-this-model" in (error.where or "")
    assert "HF_TOKEN" in (error.mend or "")


def test_a_gated_model_says_where_its_terms_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*_: object, **__: object) -> None:
        answer = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.example"))
        raise OSError("You are trying to access a gated repo.\nAnd so on") from GatedRepoError(
            "403", response=answer
        )

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", gated)
    error = refusal("google/gemma-2-9b-it")
    assert error.found == "You are trying to access a gated repo."
    assert "accept its terms" in (error.mend or "")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "tiny-it" in str(refusal(folder))


def test_damaged_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    assert "tiny-it" in str(refusal(folder))


def test_weights_that_the_files_lack_are_not_made_up(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config["layer_types"].append("full_attention")
    (folder / "config.json").write_text(json.dumps(config))
    error = refusal(folder)
    assert error.what == "The model's files lack weights."
    assert "layers.3" in (error.found or "")


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "tiny-it" in str(refusal(folder))


def test_the_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    AutoModelForCausalLM.from_config(config_of("gemma2", 300)).save_pretrained(folder)
    assert refusal(folder).what == "The model's tokenizer is another model's."


def test_a_model_that_keeps_another_state_is_refused(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(None)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=8, state_size=4, num_hidden_layers=1
    )
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    error = refusal(tmp_path / "mamba")
    assert "mamba" in (error.found or "")
    assert "base_url" in (error.mend or "")


def test_a_device_that_there_is_not_is_named(shared: Path) -> None:
    error = refusal(shared, "abacus")
    assert error.found == "abacus"


def test_a_client_whose_model_cannot_be_loaded_is_not_entered(tmp_path: Path) -> None:
    async def enter() -> None:
        async with LocalClient(str(tmp_path / "none"), "cpu"):
            raise AssertionError("entered")

    with pytest.raises(ModelError):
        asyncio.run(enter())
