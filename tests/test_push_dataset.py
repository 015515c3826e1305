"""Uploading a data set: the hub's own client, over HTTP, to a server that answers like the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scopenote.store.run_folder import RunFolder

from .fake_hub import FakeHub, fake_hub
from .hostile_run import make_hostile_run

pytestmark = pytest.mark.slow  # a process each


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def push(
    run: RunFolder, target: Path, url: str, name: str = "me/labels", **more: str
) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    # The hub's newer way of storing files has no server that could stand here.
    own |= {"TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **more}
    words = ["export", str(run.path), "--to", str(target), "--push-to-hub", name]
    return subprocess.run(
        [sys.executable, "-m", "scopenote.flows.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | own,
    )


def test_all_files_of_the_export_are_there_and_the_repository_is_private(
    hub: FakeHub, hostile: RunFolder, tmp_path: Path
) -> None:
    finished = push(hostile, tmp_path / "out", hub.url)
    assert finished.returncode == 0, finished.stderr
    there = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert hub.files == there
    assert hub.created[0]["visibility"] == "private"
    assert hub.tokens <= {"Bearer hf_secret", None}
    assert hub.messages == ["Labels of Scopenote's run at hostile"]
    assert f"{hub.url}/datasets/me/labels" in finished.stdout
    assert b'load_dataset("me/labels", "labels"' in there["README.md"]
    assert not any(b"hf_secret" in content for content in there.values())


def test_a_token_that_may_not_write_is_refused_before_the_export(
    hub: FakeHub, hostile: RunFolder, tmp_path: Path
) -> None:
    hub.refuse = ("/api/", 403)
    finished = push(hostile, tmp_path / "out", hub.url)
    assert finished.returncode == 2
    assert "does not let this token write there" in finished.stderr
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_the_export(
    hub: FakeHub, hostile: RunFolder, tmp_path: Path
) -> None:
    hub.refuse = ("/commit/", 400)
    finished = push(hostile, tmp_path / "out", hub.url)
    assert finished.returncode == 1
    assert "could not be uploaded; the export is where it was put" in finished.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_nobody_answering_is_said(hostile: RunFolder, tmp_path: Path) -> None:
    finished = push(hostile, tmp_path / "out", "http://127.0.0.1:9")
    assert finished.returncode == 1
    assert "The hub does not answer; nothing was exported." in finished.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_name_of_a_repository_is_refused(
    hub: FakeHub, hostile: RunFolder, tmp_path: Path
) -> None:
    finished = push(hostile, tmp_path / "out", hub.url, "a/b/c")
    assert finished.returncode == 2
    assert "owner/name" in finished.stderr


def test_a_hub_that_is_switched_off_is_said(
    hub: FakeHub, hostile: RunFolder, tmp_path: Path
) -> None:
    finished = push(hostile, tmp_path / "out", hub.url, HF_HUB_OFFLINE="1")
    assert finished.returncode == 2
    assert "unset HF_HUB_OFFLINE" in finished.stderr
    assert hub.created == []
