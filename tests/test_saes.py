"""SAE files: their arithmetic, what is refused and why, and what a path says of itself."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from scopenote.extract.sae_sources import SaeSource, locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site
from scopenote.store.errors import SaeError

from .tiny_gemma import sae_arrays, save_tiny_sae, tiny_config

HIDDEN, WIDTH = 16, 40
CONFIG = tiny_config(hidden=HIDDEN, heads=2, head_dim=12)
GEMMA_SCOPE = "google/gemma-scope-2b-pt-res"
HUB_PATH = f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_71"


def save(folder: Path, arrays: dict[str, Any]) -> Path:
    """These arrays as the SAE of the residual stream of layer 1."""
    file = folder / "res/layer_1/width_40/average_l0_5/params.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return file


def load(file: Path) -> Sae:
    return load_sae(locate_sae(str(file), "tiny-gemma-2"), CONFIG)


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


def test_missing_arrays_are_told_from_those_there(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    del arrays["threshold"]
    refused = refuse(save(tmp_path, arrays))
    assert refused.found == "W_enc, W_dec, b_enc, b_dec"
    assert "threshold" in (refused.expected or "")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("W_enc", (WIDTH, HIDDEN), (HIDDEN, WIDTH)),
        ("W_dec", (HIDDEN, WIDTH), (WIDTH, HIDDEN)),
        ("threshold", (WIDTH - 1,), (WIDTH,)),
        ("threshold", (), (WIDTH,)),
        ("b_dec", (WIDTH,), (HIDDEN,)),
    ],
)
def test_shapes_that_do_not_fit_each_other_are_named(
    tmp_path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
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


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    arrays[name].flat[3] = value
    refused = refuse(save(tmp_path, arrays))
    assert (refused.where or "").endswith(f"array {name}")
    assert refused.found == f"1 of {arrays[name].size} values"


def test_thresholds_below_zero_are_refused(tmp_path: Path) -> None:
    arrays = sae_arrays(WIDTH, HIDDEN)
    arrays["threshold"][[2, 5]] = -0.5
    assert refuse(save(tmp_path, arrays)).found == "2 values below zero, the least -0.5"


def test_a_threshold_of_zero_is_allowed(tmp_path: Path) -> None:
    load(save(tmp_path, sae_arrays(WIDTH, HIDDEN) | {"threshold": np.zeros(WIDTH)}))


# --- what a local path says ---------------------------------------------------------------


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def locate_below(folder: Path, path: str, **told: Any) -> SaeSource:
    touch(folder / path / "params.npz")
    return locate_sae(str(folder / path), "gemma-2-2b", **told)


@pytest.mark.parametrize("ending", ["", "/", "/params.npz"])
def test_a_folder_and_its_file_mean_the_same_sae(tmp_path: Path, ending: str) -> None:
    file = save_tiny_sae(tmp_path, "mlp", 2, WIDTH, HIDDEN, l0=7)
    path = f"{file.parent}{ending}"
    assert locate_sae(path, "tiny") == SaeSource(
        sae_id="tiny/2-mlp-40", path=file, site=Site(2, "mlp"), stated_l0=7.0, source=path
    )


@pytest.mark.parametrize(
    ("path", "site", "source"),
    [
        ("res/layer_1/width_1k/average_l0_19", Site(1, "res"), "1-res-1k"),
        ("my-saes-att/layer_0/width_512/average_l0_8", Site(0, "att"), "0-att-512"),
        # The canonical choices are 71 (res), 62 (att), 131 (mlp of 9B).
        (f"{HUB_PATH}", Site(20, "res"), "20-gemmascope-res-16k"),
        (
            "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_22",
            Site(20, "res"),
            "20-gemmascope-res-16k-l0-22",
        ),
        (
            "gemma-scope-2b-pt-att/layer_20/width_16k/average_l0_62",
            Site(20, "att"),
            "20-gemmascope-att-16k",
        ),
        (
            "gemma-scope-2b-pt-mlp/layer_25/width_65k/average_l0_107",
            Site(25, "mlp"),
            "25-gemmascope-mlp-65k",
        ),
        (
            "gemma-scope-9b-it-res/layer_31/width_131k/average_l0_109",
            Site(31, "res"),
            "31-gemmascope-res-131k",
        ),
        (
            "gemma-scope-27b-pt-res/layer_34/width_131k/average_l0_785",
            Site(34, "res"),
            "34-gemmascope-res-131k-l0-785",
        ),
        # Not published: no canonical choice, so the L0 is always told.
        (
            "gemma-scope-2b-pt-res/layer_3/width_2k/average_l0_100",
            Site(3, "res"),
            "3-gemmascope-res-2k-l0-100",
        ),
    ],
)
def test_gemma_scope_s_layout_says_what_an_sae_reads(
    tmp_path: Path, path: str, site: Site, source: str
) -> None:
    located = locate_below(tmp_path, path)
    assert (located.site, located.sae_id) == (site, f"gemma-2-2b/{source}")
    assert located.stated_l0 == float(path.rpartition("_")[2])


def test_the_hub_s_cache_is_read_as_the_repository_it_holds(tmp_path: Path) -> None:
    repository = tmp_path / "models--google--gemma-scope-2b-pt-res"
    blob = touch(repository / "blobs/0a1b")
    folder = repository / "snapshots/fd57/layer_20/width_16k/average_l0_71"
    folder.mkdir(parents=True)
    (folder / "params.npz").symlink_to(blob)
    located = locate_sae(str(folder), "gemma-2-2b")
    assert located.sae_id == "gemma-2-2b/20-gemmascope-res-16k"
    assert located.site == Site(20, "res")


def test_a_relative_path_is_read_as_the_folder_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = touch(tmp_path / "att/layer_2/width_1k/average_l0_5/params.npz").parent
    monkeypatch.chdir(folder.parents[1])
    assert locate_sae("width_1k/average_l0_5", "m").sae_id == "m/2-att-1k"
    monkeypatch.chdir(folder)
    assert locate_sae("params.npz", "m").site == Site(2, "att")


def test_another_layout_is_told_by_the_caller(tmp_path: Path) -> None:
    located = locate_below(tmp_path, "my-sae", kind="mlp", layer=4)
    assert located.sae_id == "gemma-2-2b/my-sae"
    assert (located.site, located.stated_l0) == (Site(4, "mlp"), None)


@pytest.mark.parametrize(
    ("path", "told", "found"),
    [
        ("my-sae", {}, "site unknown, layer unknown"),
        ("my-sae", {"kind": "res"}, "site res, layer unknown"),
        ("my-sae", {"layer": 0}, "site unknown, layer 0"),
        ("mine/layer_4/width_1k/average_l0_5", {}, "site unknown, layer 4"),
        (
            "gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_5",
            {},
            "site unknown, layer 4",
        ),
    ],
)
def test_a_path_that_does_not_say_what_is_read_is_refused(
    tmp_path: Path, path: str, told: dict[str, Any], found: str
) -> None:
    with pytest.raises(SaeError) as refused:
        locate_below(tmp_path, path, **told)
    assert refused.value.found == found
    assert 'site = "res", layer = 20' in (refused.value.mend or "")


def test_the_caller_fills_in_what_the_layout_leaves_open(tmp_path: Path) -> None:
    located = locate_below(tmp_path, "mine/layer_4/width_1k/average_l0_5", kind="att")
    assert located.site == Site(4, "att")


@pytest.mark.parametrize("path", ["missing.npz", "no/such/folder", "empty"])
def test_a_path_with_nothing_there_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeError, match="There is no SAE") as refused:
        locate_sae(str(tmp_path / path), "tiny")
    assert refused.value.found == str(tmp_path / path)


# --- the hub ------------------------------------------------------------------------------


class FakeHub:
    """Stands where the network begins: gives a file, or fails as told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked, self.failure = folder, [], None
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.download)
        monkeypatch.chdir(folder)

    asked: list[tuple[str, str]]
    failure: Exception | None

    def download(self, repo_id: str, filename: str) -> str:
        self.asked.append((repo_id, filename))
        if self.failure:
            raise self.failure
        return str(touch(self.folder / "cache" / "0a1b"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path, monkeypatch)


@pytest.mark.parametrize("ending", ["", "/", "/params.npz"])
def test_a_path_on_the_hub_is_downloaded(hub: FakeHub, ending: str) -> None:
    located = locate_sae(HUB_PATH + ending, "gemma-2-2b")
    assert hub.asked == [(GEMMA_SCOPE, "layer_20/width_16k/average_l0_71/params.npz")]
    assert located == SaeSource(
        sae_id="gemma-2-2b/20-gemmascope-res-16k",
        path=hub.folder / "cache" / "0a1b",
        site=Site(20, "res"),
        stated_l0=71.0,
        source=HUB_PATH + ending,
    )


def test_what_lies_here_is_not_asked_of_the_hub(hub: FakeHub) -> None:
    file = touch(hub.folder / HUB_PATH / "params.npz")
    assert locate_sae(HUB_PATH, "gemma-2-2b").path.samefile(file)
    assert hub.asked == []


@pytest.mark.parametrize("path", ["./saes/my/sae", "saes/sae", "/saes/my/sae", "~/saes/my/sae"])
def test_what_can_only_be_local_is_not_asked_of_the_hub(hub: FakeHub, path: str) -> None:
    with pytest.raises(SaeError, match="There is no SAE"):
        locate_sae(path, "gemma-2-2b", "res", 1)
    assert hub.asked == []


def test_nothing_is_downloaded_before_it_is_known_what_it_reads(hub: FakeHub) -> None:
    with pytest.raises(SaeError, match="does not say which tensor"):
        locate_sae("someone/saes/layer_1", "gemma-2-2b")
    assert hub.asked == []


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub.example"))


@pytest.mark.parametrize(
    ("failure", "what", "mend"),
    [
        (
            errors.GatedRepoError("403: gated", response=answer(403)),
            "is not open to you",
            "HF_TOKEN",
        ),
        (
            errors.RepositoryNotFoundError("404", response=answer(404)),
            "does not exist, or is private",
            "saes",
        ),
        (
            errors.RemoteEntryNotFoundError("404", response=answer(404)),
            "has no such file",
            "average_l0_71",
        ),
        (errors.LocalEntryNotFoundError("no connection"), "cannot be reached", "connection"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached", "connection"),
        (errors.HfHubHTTPError("503", response=answer(503)), "cannot be reached", "connection"),
        (httpx2.ReadTimeout(""), "cannot be reached", "connection"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_download_that_fails_says_why(
    hub: FakeHub, failure: Exception, what: str, mend: str
) -> None:
    hub.failure = failure
    path = f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_70"
    with pytest.raises(SaeError) as refused:
        locate_sae(path, "gemma-2-2b")
    error = refused.value
    assert error.what.endswith(f"the hub's repository {GEMMA_SCOPE} {what}.")
    assert "layer_20/width_16k/average_l0_70/params.npz" in (error.where or "")
    assert error.found == (str(failure) or "ReadTimeout")
    assert mend in (error.mend or "")


def test_a_full_disk_is_not_taken_for_a_missing_connection(hub: FakeHub) -> None:
    hub.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        locate_sae(HUB_PATH, "gemma-2-2b")
