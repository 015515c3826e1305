"""What lies on this machine is found without asking the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scopenote.extract.local_files import (
    find_local_model,
    find_local_sae,
    missing_weights,
    read_sae_shapes,
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


def test_what_was_never_published_is_refused_with_the_nearest(hub_cache: Path) -> None:
    for path in ("gemma-2-2b/20-gemmascope-res-16k-l0-70", SAE.replace("l0_71", "l0_70")):
        for ending in ("", "/params.npz") if path.startswith("google") else ("",):
            with pytest.raises(SaeError, match="the nearest are"):
                find_local_sae(path + ending)


def test_saes_of_other_people_are_at_hand_too(tmp_path: Path) -> None:
    arrays = {"encoder.weight": np.zeros((64, 16)), "W_dec": np.zeros((64, 16))}
    save_file(arrays, tmp_path / "sae.safetensors")
    assert find_local_sae(str(tmp_path)) == tmp_path / "sae.safetensors"
    assert read_sae_shapes(tmp_path / "sae.safetensors")["W_enc"] == (16, 64)


def test_a_folder_without_an_sae_holds_none(tmp_path: Path) -> None:
    assert find_local_sae(str(tmp_path)) is None


def test_shapes_are_read_without_the_numbers(tmp_path: Path) -> None:
    arrays = sae_arrays(64, 16)
    expected = {name: array.shape for name, array in arrays.items()}
    file = tmp_path / "params.npz"
    for save in (np.savez, np.savez_compressed):
        save(file, **arrays)
        assert read_sae_shapes(file) == expected
    tensors = tmp_path / "params.safetensors"
    save_file(arrays, tensors)
    assert read_sae_shapes(tensors) == expected


def test_an_sae_of_gemma_scope_2_is_found_as_well(tmp_path: Path, hub_cache: Path) -> None:
    path = "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium"
    assert find_local_sae(path) is None
    cached = put_in_cache(
        hub_cache,
        "google/gemma-scope-2-1b-pt",
        "resid_post/layer_13_width_16k_l0_medium/params.safetensors",
    )
    assert find_local_sae(path) == cached
    assert find_local_sae(str(cached.parent)) == cached


def test_a_short_name_is_found_under_its_path_on_the_hub(hub_cache: Path) -> None:
    assert find_local_sae("gemma-2-2b/20-gemmascope-res-16k") is None
    repository, inside = "google/gemma-scope-2b-pt-res", SAE.split("/", 2)[2]
    cached = put_in_cache(hub_cache, repository, f"{inside}/params.npz")
    assert find_local_sae("gemma-2-2b/20-gemmascope-res-16k") == cached


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["params.npz", "params.safetensors"])
def test_a_damaged_file_is_said_to_be(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SaeError, match="cannot be read"):
        read_sae_shapes(file)


def test_a_file_that_is_cut_inside_an_array_is_said_to_be_damaged(tmp_path: Path) -> None:
    import zipfile

    file = tmp_path / "params.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00v\x00{'descr'")
    with pytest.raises(SaeError, match="cannot be read"):
        read_sae_shapes(file)
