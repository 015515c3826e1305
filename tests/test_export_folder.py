"""The folder of an export: whole or not at all, the same bytes again, nothing of others lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from scopenote.store.database import open_store
from scopenote.store.errors import StoreError, UserMistake
from scopenote.store.export_choice import ExportChoice, choose
from scopenote.store.export_folder import MANIFEST, written_export
from scopenote.store.run_folder import RunFolder

from .exported_runs import export, parquet
from .hostile_run import make_hostile_run

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def exported(hostile: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each format."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        kind: export(hostile, folder / kind, kind)
        for kind in ("dataset", "parquet", "jsonl", "csv")
    }


@pytest.mark.parametrize("kind", ["dataset", "parquet", "jsonl", "csv"])
def test_the_same_state_gives_the_same_bytes(
    exported: dict[str, Path], hostile: RunFolder, tmp_path: Path, kind: str
) -> None:
    again = export(hostile, tmp_path / "again", kind)
    first = {file.name: file.read_bytes() for file in exported[kind].iterdir()}
    assert {file.name: file.read_bytes() for file in again.iterdir()} == first
    assert MANIFEST in first


@pytest.mark.parametrize("kind", ["dataset", "parquet", "jsonl", "csv"])
def test_the_manifest_lists_every_file_with_rows_hash_and_query(
    exported: dict[str, Path], kind: str
) -> None:
    folder = exported[kind]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {each["file"] for each in manifest["files"]} | {MANIFEST} == {
        file.name for file in folder.iterdir()
    }
    for each in manifest["files"]:
        content = (folder / each["file"]).read_bytes()
        assert each["sha256"] == hashlib.sha256(content).hexdigest()
        assert each["bytes"] == len(content)
        if each["holds"]:
            assert each["rows"] > 0
            assert each["query"].startswith(("SELECT ", "WITH "))
    assert manifest["choice"] == {
        "saes": [], "source": None, "min_score": None, "labels": "in force",
    }  # fmt: skip
    assert manifest["database"]["revision"] == "hostile"


def test_a_query_of_the_manifest_gives_the_rows_again(
    exported: dict[str, Path], hostile: RunFolder
) -> None:
    manifest = json.loads((exported["parquet"] / MANIFEST).read_text())
    queries = {each["holds"]: each["query"] for each in manifest["files"]}
    with open_store(hostile.path) as store:
        choose(store.connection, ExportChoice())
        rows = store.connection.sql(queries["labels"]).to_arrow_table().to_pylist()
    assert rows == parquet(exported["parquet"], "labels")


def test_nothing_is_left_beside_an_export_that_failed(hostile: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_export(tmp_path / "out") as folder:
        folder.add_text("a.txt", "half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_stays_as_it_was_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_text(target, "a.txt", "first")
    with pytest.raises(ZeroDivisionError), written_export(target, overwrite=True) as folder:
        folder.add_text("a.txt", "second")
        raise ZeroDivisionError
    assert (target / "a.txt").read_text() == "first"


def test_a_disk_that_takes_no_more_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    write_text(target, "a.txt", "first")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StoreError, match="The disk is full"):
        write_text(target, "a.txt", "second", overwrite=True)
    assert (target / "a.txt").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def write_text(target: Path, name: str, content: str, overwrite: bool = False) -> None:
    with written_export(target, overwrite) as folder:
        folder.add_text(name, content)
        folder.write_manifest({})


def test_what_a_killed_export_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished-4194999"  # no process has so high a number
    left.mkdir()
    (left / "a.txt").write_text("half")
    busy = tmp_path / f".out.unfinished-{os.getppid()}"
    busy.mkdir()
    write_text(tmp_path / "out", "a.txt", "whole")
    assert not left.exists()
    assert busy.exists()


def test_a_folder_with_something_in_it_is_refused_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserMistake, match="not empty") as refusal:
        write_text(target, "a.txt", "new")
    assert "--overwrite" in str(refusal.value)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    write_text(target, "a.txt", "new", overwrite=True)
    # What no export wrote is somebody's.
    assert (target / "mine.txt").read_text() == "mine"
    assert (target / "a.txt").read_text() == "new"


def test_what_an_earlier_export_wrote_goes_and_what_it_did_not_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with written_export(target) as folder:
        folder.add_text("old/a.txt", "old")
        folder.add_text("b.txt", "old")
        folder.write_manifest({})
    for mine in (".git/HEAD", "old/mine.txt"):
        (target / mine).parent.mkdir(exist_ok=True)
        (target / mine).write_text("mine")
    write_text(target, "b.txt", "new", overwrite=True)
    there = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert there == {".git/HEAD", "old/mine.txt", "b.txt", MANIFEST}
    assert (target / "b.txt").read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_text(tmp_path / "out", "a.txt", "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
