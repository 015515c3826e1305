"""`scopenote export` as it is typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scopenote.flows.cli import main
from scopenote.store.export_choice import TABLES
from scopenote.store.run_folder import RunFolder

from .hostile_run import make_hostile_run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def command(
    hostile: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str | Path) -> tuple[int, str, str]:
        argv = ["scopenote", "export", str(hostile.path), *map(str, words)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        return ending.value.code, output.out, output.err

    return run


def test_the_command_says_what_it_wrote(command: Callable, tmp_path: Path) -> None:
    status, out, _ = command("--to", tmp_path / "out", "--format", "jsonl", "--min-score", "0.5")
    assert status == 0
    assert "labels.jsonl" in out and "contexts.jsonl" in out
    status, out, _ = command("--to", tmp_path / "out2", "--format", "csv", "--json")
    found = json.loads(out)
    assert found["rows"]["features"] == 84
    assert {each["file"] for each in found["files"]} == {f"{name}.csv" for name in TABLES}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sae", "toy-gemma-2/9-res-1k"), "The run has no such SAE"),
        (("--source", "human"), "no such label"),
        (("--min-score", "1.5"), "no such label"),
        (("--format", "csv", "--push-to-hub", "me/labels"), "Only a data set is uploaded"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    command: Callable, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    status, _, err = command("--to", tmp_path / "out", *words)
    assert status == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_lands_in_a_run(command: Callable, hostile: RunFolder) -> None:
    status, _, err = command("--to", hostile.path, "--overwrite")
    assert status == 2
    assert "over a run" in err
    assert hostile.database.is_file()


def test_a_file_in_the_way_is_named(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    status, _, err = command("--to", tmp_path / "out", "--overwrite")
    assert status == 2
    assert str(tmp_path / "out") in err
    assert (tmp_path / "out").read_text() == "mine"


def test_uploading_without_a_token_is_refused_before_anything_is_written(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    status, _, err = command("--to", tmp_path / "out", "--push-to-hub", "me/labels")
    assert status == 2
    assert "HF_TOKEN" in err
    assert not (tmp_path / "out").exists()
