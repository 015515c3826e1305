"""What lies on this machine is found without asking the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scopenote.extract.local_files import (
    find_local_model,
    find_local_sae,
    missing_weights,
    read_npz_headers,
    read_sae_headers,
)
from scopenote.extract.models import TOY
from scopenote.store.errors import ModelError, SaeError

from .tiny_gemma import sae_arrays, save_tiny_gemma

SAE = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(cache: Path, repository: str, file: str, content: bytes = b"{}") -> Path:
    """A file as the hub's cache keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("abc123")
    path = folder / "snapshots" / "abc123" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_toy_and_a_folder_are_at_hand(tmp_path: Path) -> None:
    toy = find_local_model(TOY)
    assert toy is not None
    assert missing_weights(toy) is None
    folder = save_tiny_gemma(tmp_path / "tiny")
    assert find_local_model(str(folder)) == folder


def test_a_model_of_the_hub_is_at_hand_once_it_is_in_the_cache(hub_cache: Path) -> None:
    assert find_local_model("google/gemma-2-2b") is None
    config = put_in_cache(hub_cache, "google/gemma-2-2b", "config.json")
    assert find_local_model("google/gemma-2-2b") == config.parent


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no such//name", ""])
def test_what_is_no_model_is_not_at_hand(hub_cache: Path, name: str) -> None:
    assert find_local_model(name) is None


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    assert missing_weights(tmp_path) == "model.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    index.write_text(json.dumps({"weight_map": parts}))
    (tmp_path / "model-1-of-2.safetensors").touch()
    assert missing_weights(tmp_path) == "model-2-of-2.safetensors"
    (tmp_path / "model-2-of-2.safetensors").touch()
    assert missing_weights(tmp_path) is None
    for damaged in ("{", "[]", "{}"):
        index.write_text(damaged)
        with pytest.raises(ModelError, match="index"):
            missing_weights(tmp_path)


def test_an_sae_is_found_by_file_folder_cache_and_copies_of_its_repository(
    tmp_path: Path, hub_cache: Path
) -> None:
    assert find_local_sae(SAE) is None
    copies = tmp_path / "copies"
    organization, repository, inside = SAE.split("/", 2)
    for above in (copies / "a" / organization / repository, copies / "b" / repository):
        file = above / inside / "params.npz"
        file.parent.mkdir(parents=True)
        file.touch()
        assert find_local_sae(str(file)) == find_local_sae(str(file.parent)) == file
        assert find_local_sae(SAE, [above]) == file
    assert find_local_sae(SAE, [copies / "a"]) == copies / "a" / SAE / "params.npz"
    assert find_local_sae(SAE, [tmp_path, copies / "b"]) is not None
    assert find_local_sae(SAE, [copies]) is None
    # A folder of another name may hold another model's SAE of the same layer.
    (copies / "b" / repository).rename(copies / "b" / "gemma-scope-9b-pt-res")
    assert find_local_sae(SAE, [copies / "b" / "gemma-scope-9b-pt-res"]) is None
    cached = put_in_cache(hub_cache, f"{organization}/{repository}", f"{inside}/params.npz")
    assert find_local_sae(SAE) == find_local_sae(f"{SAE}/params.npz") == cached


def test_a_short_name_is_found_where_its_path_would_be(hub_cache: Path) -> None:
    repository = "google/gemma-scope-2b-pt-res"
    cached = put_in_cache(hub_cache, repository, f"{SAE.removeprefix(repository)[1:]}/params.npz")
    assert find_local_sae("gemma-2-2b/20-gemmascope-res-16k") == cached
    with pytest.raises(SaeError, match="the nearest are"):
        find_local_sae("gemma-2-2b/20-gemmascope-res-16k-l0-70")
    with pytest.raises(SaeError, match="the nearest are"):
        find_local_sae(SAE.replace("l0_71", "l0_70"))


def test_saes_of_other_forms_are_at_hand_too(hub_cache: Path, tmp_path: Path) -> None:
    inside = "resid_post/layer_13_width_16k_l0_medium"
    repository = "google/gemma-scope-2-1b-pt"
    cached = put_in_cache(hub_cache, repository, f"{inside}/params.safetensors")
    assert find_local_sae(f"{repository}/{inside}") == cached
    (tmp_path / "sae_weights.safetensors").touch()
    assert find_local_sae(str(tmp_path)) == tmp_path / "sae_weights.safetensors"


def test_headers_of_safetensors_have_the_names_of_gemma_scope(tmp_path: Path) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in sae_arrays(64, 16).items()}
    save_file({"w_enc": arrays["W_enc"].bfloat16()}, tmp_path / "params.safetensors")
    header = read_sae_headers(tmp_path / "params.safetensors")["w_enc"]
    assert (header.shape, header.dtype.itemsize) == ((16, 64), 2)
    save_file({"encoder.weight": arrays["W_enc"].T.contiguous()}, tmp_path / "sae.safetensors")
    assert read_sae_headers(tmp_path / "sae.safetensors")["W_enc"].shape == (16, 64)
    (tmp_path / "params.safetensors").write_bytes(b"cut")
    with pytest.raises(SaeError, match="cannot be read"):
        read_sae_headers(tmp_path / "params.safetensors")
    save_file({"w_enc": torch.zeros(2, dtype=torch.int64)}, tmp_path / "params.safetensors")
    with pytest.raises(SaeError, match="cannot be read"):
        read_sae_headers(tmp_path / "params.safetensors")


def test_a_folder_without_an_sae_holds_none(tmp_path: Path) -> None:
    assert find_local_sae(str(tmp_path)) is None


def test_headers_are_read_without_the_numbers(tmp_path: Path) -> None:
    file = tmp_path / "params.npz"
    arrays = sae_arrays(64, 16)
    for save in (np.savez, np.savez_compressed):
        save(file, **arrays)
        headers = read_npz_headers(file)
        assert {name: header.shape for name, header in headers.items()} == {
            name: array.shape for name, array in arrays.items()
        }
        assert all(header.dtype == np.float32 for header in headers.values())
        assert headers["W_enc"].n_values == 16 * 64


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_said_to_be(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "params.npz"
    file.write_bytes(content)
    with pytest.raises(SaeError, match="cannot be read"):
        read_npz_headers(file)


def test_a_file_that_is_cut_inside_an_array_is_said_to_be_damaged(tmp_path: Path) -> None:
    import zipfile

    file = tmp_path / "params.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00v\x00{'descr'")
    with pytest.raises(SaeError, match="cannot be read"):
        read_npz_headers(file)
