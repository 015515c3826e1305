"""SAE files: their arithmetic, and what is refused and why."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site
from scopenote.store.errors import SaeError

from .tiny_gemma import sae_arrays, save_tiny_sae, tiny_config

HIDDEN, WIDTH = 16, 40
CONFIG = tiny_config(hidden=HIDDEN, heads=2, head_dim=12)


Save = Callable[[Path, dict[str, Any]], Path]


def save(folder: Path, arrays: dict[str, Any]) -> Path:
    """These arrays as the SAE of the residual stream of layer 1, in Gemma Scope's form."""
    file = folder / "res/layer_1/width_40/average_l0_5/params.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return file


def save_2(folder: Path, arrays: dict[str, Any], family: str = "resid_post") -> Path:
    """The same in the form of Gemma Scope 2."""
    file = folder / family / "layer_1_width_40_l0_medium/params.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    lower = {name.lower(): np.asarray(array, np.float32) for name, array in arrays.items()}
    save_file(lower, file)
    return file


both_forms = pytest.mark.parametrize("save", [save, save_2], ids=["npz", "safetensors"])


def load(file: Path) -> Sae:
    return load_sae(locate_sae(str(file), "tiny-gemma-2"), CONFIG)


def test_both_forms_of_the_same_sae_compute_the_same(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    one, two = load(save(tmp_path, arrays)), load(save_2(tmp_path, arrays))
    for name in ("encoder", "encoder_bias", "threshold", "decoder", "decoder_bias"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert two.skip is None
    assert (two.site, two.source.stated_l0) == (Site(1, "res"), None)
    assert two.sae_id == "tiny-gemma-2/1-gemmascope-2-res-40"


def test_half_precision_in_safetensors_is_read_as_float32(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    file = save_2(tmp_path, arrays)
    halved = {name.lower(): torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    save_tensors(halved, file)
    sae = load(file)
    assert torch.equal(sae.encoder, torch.from_numpy(arrays["W_enc"].T).bfloat16().float())


def test_a_transcoder_may_pass_its_input_on(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    arrays["affine_skip_connection"] = np.triu(np.ones((HIDDEN, HIDDEN), np.float32))
    sae = load(save_2(tmp_path, arrays, "transcoder"))
    assert (sae.site, sae.target) == (Site(1, "mlp_in"), Site(1, "mlp"))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((9, HIDDEN)).astype(np.float32))
    straight = x.numpy() @ arrays["affine_skip_connection"]
    features = sae.decode(sae.encode(x)).numpy()
    np.testing.assert_allclose(sae.reconstruct(x), features + straight, atol=1e-4)
    moved = sae.to(torch.device("meta"))
    assert moved.skip is not None
    assert moved.skip.is_meta


def refuse(file: Path) -> SaeError:
    with pytest.raises(SaeError) as refused:
        load(file)
    assert str(file) in (refused.value.where or "")
    return refused.value


# --- the arithmetic -----------------------------------------------------------------------


def test_an_sae_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    file = save_tiny_sae(tmp_path, "res", 1, WIDTH, HIDDEN, l0=5)
    arrays, sae = np.load(file), load(file)
    assert (sae.width, sae.site, sae.sae_id) == (WIDTH, Site(1, "res"), "tiny-gemma-2/1-res-40")
    assert sae.source.stated_l0 == 5
    np.testing.assert_array_equal(sae.encoder, arrays["W_enc"].T)
    np.testing.assert_array_equal(sae.encoder_bias, arrays["b_enc"])
    np.testing.assert_array_equal(sae.decoder, arrays["W_dec"])
    np.testing.assert_array_equal(sae.decoder_bias, arrays["b_dec"])
    np.testing.assert_array_equal(sae.threshold, arrays["threshold"])


def test_encoding_is_jump_relu_of_the_input_as_it_is(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN, seed=3)
    arrays["b_dec"] += 10  # would show if it were subtracted from the input
    x = np.random.default_rng(0).standard_normal((50, HIDDEN)).astype(np.float32)
    pre = x.astype(np.float64) @ arrays["W_enc"] + arrays["b_enc"]
    f = np.where(pre > arrays["threshold"], pre, 0)
    sae = load(save(tmp_path, arrays))
    encoded = sae.encode(torch.from_numpy(x))
    np.testing.assert_allclose(encoded, f, atol=1e-5)
    assert 3 < (encoded > 0).sum(1).float().mean() < 8
    decoded = f @ arrays["W_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(sae.decode(encoded), decoded, atol=1e-4)


def test_a_feature_at_its_threshold_is_silent(tmp_path: Path) -> None:
    arrays = {
        "W_enc": np.ones((HIDDEN, 1)),
        "W_dec": np.ones((1, HIDDEN)),
        "b_enc": np.zeros(1),
        "b_dec": np.zeros(HIDDEN),
        "threshold": np.full(1, 2.0),
    }
    x = torch.zeros(3, HIDDEN)
    x[:, 0] = torch.tensor([1.75, 2.0, 2.25])
    assert load(save(tmp_path, arrays)).encode(x).flatten().tolist() == [0, 0, 2.25]


def test_w_enc_may_be_spelled_small(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    usual = load(save(tmp_path / "usual", arrays))
    arrays["w_enc"] = arrays.pop("W_enc")
    assert torch.equal(load(save(tmp_path / "small", arrays)).encoder, usual.encoder)


def test_other_arrays_in_the_file_do_no_harm(tmp_path: Path) -> None:
    assert load(save(tmp_path, sae_arrays(WIDTH, HIDDEN) | {"note": np.ones(3)})).width == WIDTH


def test_an_sae_for_attention_is_as_wide_as_all_heads(tmp_path: Path) -> None:
    assert load(save_tiny_sae(tmp_path, "att", 1, WIDTH, 24)).decoder.shape == (WIDTH, 24)


def test_the_content_hash_is_of_the_file(tmp_path: Path) -> None:
    one = load(save_tiny_sae(tmp_path / "1", "res", 1, WIDTH, HIDDEN, seed=1))
    same = load(save_tiny_sae(tmp_path / "2", "res", 1, WIDTH, HIDDEN, seed=1))
    other = load(save_tiny_sae(tmp_path / "3", "res", 1, WIDTH, HIDDEN, seed=2))
    assert one.content_hash == same.content_hash != other.content_hash


# --- files that are refused ---------------------------------------------------------------


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[500] ^= 0xFF
    file.write_bytes(content)


def compress_and_flip_a_byte(file: Path) -> None:
    np.savez_compressed(file, **sae_arrays(WIDTH, HIDDEN))
    flip_a_byte(file)


def write_text(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\n")


def pickle_instead(file: Path) -> None:
    file.write_bytes(pickle.dumps(sae_arrays(WIDTH, HIDDEN)))


def save_one_array(file: Path) -> None:
    with file.open("wb") as opened:
        np.save(opened, np.ones(3))


def pickle_inside(file: Path) -> None:
    np.savez(file, **sae_arrays(WIDTH, HIDDEN) | {"b_dec": np.array([{}], object)})


def save_words(file: Path) -> None:
    np.savez(file, **sae_arrays(WIDTH, HIDDEN) | {"b_dec": np.array(["word"])})


@both_forms
@pytest.mark.parametrize("spoil", [cut_short, empty, write_text])
def test_a_damaged_file_of_either_form_is_refused(
    tmp_path: Path, save: Save, spoil: Callable[[Path], None]
) -> None:
    file = save(tmp_path, sae_arrays(WIDTH, HIDDEN))
    spoil(file)
    refused = refuse(file)
    assert refused.what.startswith("The SAE's file cannot be read")
    assert refused.found


@pytest.mark.parametrize(
    "spoil",
    [
        cut_short,
        empty,
        flip_a_byte,
        compress_and_flip_a_byte,
        write_text,
        pickle_instead,
        save_one_array,
        pickle_inside,
        save_words,
    ],
)
def test_a_file_that_is_no_npz_of_numbers_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    file = save(tmp_path, sae_arrays(WIDTH, HIDDEN))
    spoil(file)
    refused = refuse(file)
    assert refused.what.startswith("The SAE's file cannot be read")
    assert refused.found


def test_pickled_content_is_never_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    file = save(tmp_path, {"b_dec": np.array([Attack()], object)} | sae_arrays(WIDTH, HIDDEN))
    np.savez(file, **sae_arrays(WIDTH, HIDDEN) | {"b_dec": np.array([Attack()], object)})
    refuse(file)
    file.write_bytes(pickle.dumps(Attack()))
    refuse(file)
    assert not (tmp_path / "attacked").exists()


@both_forms
def test_missing_arrays_are_told_from_those_there(tmp_path: Path, save: Save) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    del arrays["threshold"]
    refused = refuse(save(tmp_path, arrays))
    found = sorted((refused.found or "").lower().split(", "))
    assert found == ["b_dec", "b_enc", "w_dec", "w_enc"]
    assert "threshold" in (refused.expected or "")


@both_forms
@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("affine_skip_connection", (HIDDEN, WIDTH), (HIDDEN, HIDDEN)),
        ("W_enc", (WIDTH, HIDDEN), (HIDDEN, WIDTH)),
        ("W_dec", (HIDDEN, WIDTH), (WIDTH, HIDDEN)),
        ("threshold", (WIDTH - 1,), (WIDTH,)),
        ("threshold", (), (WIDTH,)),
        ("b_dec", (WIDTH,), (HIDDEN,)),
    ],
)
def test_shapes_that_do_not_fit_each_other_are_named(
    tmp_path: Path, save: Save, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    refused = refuse(save(tmp_path, sae_arrays(WIDTH, HIDDEN) | {name: np.ones(shape)}))
    assert refused.found == f"{name} {shape}"
    assert refused.expected == f"{name} {expected}"


def test_an_sae_of_another_model_or_site_is_refused_with_the_shapes(tmp_path: Path) -> None:
    refused = refuse(save(tmp_path, sae_arrays(WIDTH, 24)))
    assert refused.what == "The SAE's shapes do not fit the model's res of layer 1."
    assert refused.found == "W_enc (24, 40), W_dec (40, 24), b_dec (24,)"
    assert refused.expected == "W_enc (16, 40), W_dec (40, 16), b_dec (16,)"
    assert "16 numbers" in (refused.mend or "")


@both_forms
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, save: Save, name: str, value: float
) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    arrays[name].flat[3] = value
    refused = refuse(save(tmp_path, arrays))
    assert (refused.where or "").endswith(f"array {name}")
    assert refused.found == f"1 of {arrays[name].size} values"


@both_forms
def test_thresholds_below_zero_are_refused(tmp_path: Path, save: Save) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    arrays["threshold"][[2, 5]] = -0.5
    assert refuse(save(tmp_path, arrays)).found == "2 values below zero, the least -0.5"


@both_forms
def test_a_threshold_of_zero_is_allowed(tmp_path: Path, save: Save) -> None:
    load(save(tmp_path, sae_arrays(WIDTH, HIDDEN) | {"threshold": np.zeros(WIDTH)}))
