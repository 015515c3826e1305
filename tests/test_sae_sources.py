"""What a path says of an SAE: local, on the hub, or a short name."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors
from scopenote.extract.sae_sources import SaeSource, locate_sae
from scopenote.extract.sites import Site
from scopenote.store.errors import SaeError

from .tiny_gemma import save_tiny_sae

HIDDEN, WIDTH = 16, 40
GEMMA_SCOPE = "google/gemma-scope-2b-pt-res"
HUB_PATH = f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_71"


# --- what a local path says ---------------------------------------------------------------


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def locate_below(
    folder: Path, path: str, file: str = "params.npz", model: str = "gemma-2-2b", **told: Any
) -> SaeSource:
    touch(folder / path / file)
    return locate_sae(str(folder / path), model, **told)


def assert_described(located: SaeSource, site: Site, sae_id: str, stated_l0: float | None) -> None:
    assert (located.site, located.sae_id, located.stated_l0) == (site, sae_id, stated_l0)


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
            "31-gemmascope-res-131k-it",
        ),
        (
            "gemma-scope-27b-pt-res/layer_34/width_131k/average_l0_785",
            Site(34, "res"),
            "34-gemmascope-res-131k-l0-785",
        ),
        (
            "gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88",
            Site(4, "transcoder"),
            "4-gemmascope-transcoder-16k",
        ),
        ("transcoder/layer_4/width_1k/average_l0_9", Site(4, "transcoder"), "4-transcoder-1k"),
        # Without a canonical choice.
        (
            "gemma-scope-9b-pt-res/embedding/width_4k/average_l0_22",
            Site(0, "embedding"),
            "e-gemmascope-res-4k-l0-22",
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
    assert_described(
        locate_below(tmp_path, path),
        site,
        f"gemma-2-2b/{source}",
        stated_l0=float(path.rpartition("_")[2]),
    )


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
        ("deeper/layer_4/width_16k/average_l0_5", {}, "site unknown, layer 4"),
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
    has: tuple[str, ...] = ("params.npz",)
    json = '{"l0": 60}'

    def download(self, repo_id: str, filename: str) -> str:
        self.asked.append((repo_id, filename))
        if self.failure:
            raise self.failure
        if not filename.endswith(self.has):
            raise errors.RemoteEntryNotFoundError("404", response=answer(404))
        file = touch(self.folder / "cache" / filename)
        if filename.endswith(".json"):
            file.write_text(self.json)
        return str(file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path, monkeypatch)


@pytest.mark.parametrize("ending", ["", "/", "/params.npz"])
def test_a_path_on_the_hub_is_downloaded(hub: FakeHub, ending: str) -> None:
    located = locate_sae(HUB_PATH + ending, "gemma-2-2b")
    assert hub.asked == [(GEMMA_SCOPE, "layer_20/width_16k/average_l0_71/params.npz")]
    assert located == SaeSource(
        sae_id="gemma-2-2b/20-gemmascope-res-16k",
        path=hub.folder / "cache" / "layer_20/width_16k/average_l0_71/params.npz",
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


def test_no_weights_are_downloaded_before_it_is_known_what_it_reads(hub: FakeHub) -> None:
    with pytest.raises(SaeError, match="does not say which tensor"):
        locate_sae("someone/saes/layer_1", "gemma-2-2b")
    assert [file for _, file in hub.asked] == ["layer_1/config.json", "layer_1/cfg.json"]


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
            "tree/main",
        ),
        (errors.HfHubHTTPError("401", response=answer(401)), "refuses your token", "HF_TOKEN"),
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
    with pytest.raises(SaeError) as refused:
        locate_sae(HUB_PATH, "gemma-2-2b")
    error = refused.value
    assert error.what.endswith(f"the hub's repository {GEMMA_SCOPE} {what}.")
    assert "layer_20/width_16k/average_l0_71/params.npz" in (error.where or "")
    assert error.found == (str(failure) or "ReadTimeout")
    assert mend in (error.mend or "")


def test_a_full_disk_is_not_taken_for_a_missing_connection(hub: FakeHub) -> None:
    hub.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        locate_sae(HUB_PATH, "gemma-2-2b")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gemma-2-2b/20-gemmascope-res-16k", HUB_PATH),
        (
            "gemma-2-2b/20-gemmascope-res-16k-l0-22",
            f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_22",
        ),
        (
            "gemma-2-2b/7-gemmascope-transcoder-16k",
            "google/gemma-scope-2b-pt-transcoders/layer_7/width_16k/average_l0_70",
        ),
        (
            "gemma-2-2b/e-gemmascope-res-4k-l0-111",
            f"{GEMMA_SCOPE}/embedding/width_4k/average_l0_111",
        ),
    ],
)
def test_a_short_name_means_a_path_on_the_hub_and_is_the_sae_s_id(
    hub: FakeHub, name: str, path: str
) -> None:
    located = locate_sae(name, "gemma-2-2b")
    assert [f"{repo}/{file}" for repo, file in hub.asked] == [f"{path}/params.npz"]
    assert (located.sae_id, located.source) == (name, name)


def test_a_folder_with_the_name_of_a_short_name_is_taken_for_itself(hub: FakeHub) -> None:
    name = "gemma-2-2b/20-gemmascope-res-16k"
    touch(hub.folder / name / "params.npz")
    assert locate_sae(name, "m", "res", 3).site == Site(3, "res")
    assert hub.asked == []


def test_what_the_index_lacks_is_refused_before_the_hub_is_asked(hub: FakeHub) -> None:
    with pytest.raises(SaeError, match="Gemma Scope has no such SAE"):
        locate_sae(f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_70/params.npz", "gemma-2-2b")
    assert hub.asked == []


def test_the_embedding_needs_no_layer_and_has_none(tmp_path: Path) -> None:
    assert locate_below(tmp_path, "mine", kind="embedding").site == Site(0, "embedding")
    with pytest.raises(SaeError, match="before all layers"):
        locate_below(tmp_path, "mine", kind="embedding", layer=3)


GEMMA_SCOPE_2 = "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium"


@pytest.mark.parametrize("has_config", [True, False])
def test_gemma_scope_2_is_downloaded_with_its_config_if_it_has_one(
    hub: FakeHub, has_config: bool
) -> None:
    hub.has = ("params.safetensors", "config.json")[: 1 + has_config]
    located = locate_sae(GEMMA_SCOPE_2, "gemma-3-1b")
    folder = "resid_post/layer_13_width_16k_l0_medium"
    assert [file for _, file in hub.asked] == [
        f"{folder}/config.json",
        f"{folder}/params.safetensors",
    ]
    assert located.path == hub.folder / "cache" / folder / "params.safetensors"
    assert located.stated_l0 == (60 if has_config else None)
    assert located.sae_id == "gemma-3-1b/13-gemmascope-2-res-16k"


@pytest.mark.parametrize("ending", ["", "/ae.pt"])
def test_dictionary_learning_is_downloaded_with_its_config(hub: FakeHub, ending: str) -> None:
    hub.has = ("ae.pt", "config.json")
    hub.json = '{"trainer": {"dict_class": "AutoEncoder", "submodule_name": "resid_post_layer_7"}}'
    located = locate_sae(f"someone/saes/trainer_0{ending}", "gemma-2-2b")
    assert (located.site, located.sae_id) == (Site(7, "res"), "gemma-2-2b/trainer_0")
    assert hub.asked[0] == ("someone/saes", "trainer_0/config.json")
    assert located.path == hub.folder / "cache/trainer_0/ae.pt"
    assert located.path.with_name("config.json").is_file()


@pytest.mark.parametrize("form", ["params.npz", "params.safetensors"])
def test_a_folder_of_another_layout_may_hold_either_form(hub: FakeHub, form: str) -> None:
    hub.has = (form,)
    assert locate_sae("someone/saes/mine", "m", "res", 2).path.name == form
