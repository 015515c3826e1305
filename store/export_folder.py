"""The folder of an export: written under another name, listed in a manifest, and renamed whole.

Who sees the folder sees all of it. `manifest.json` says what each file holds, the query that made
it, its rows and its SHA-256. Nothing here has the time or a name of the machine in it: the same
state of a run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserMistake
from .run_folder import clear_disk_errors

MANIFEST = "manifest.json"
_MADE_BY = "scopenote export"
_LISTED = 3


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of an export.

    Attributes:
        file: its path in the folder, with slashes.
        holds: what its rows are; None for a file that is no table.
        rows: how many.
        bytes: its size.
        sha256: of its content, in hexadecimal digits.
        query: that its rows are the answer to, over the run's database.
    """

    file: str
    holds: str | None
    rows: int | None
    bytes: int
    sha256: str
    query: str | None


class ExportFolder:
    """An export that is being written; `written_export` makes it and puts it in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[ExportedFile] = []

    def new_file(self, name: str) -> Path:
        """Where a file of this name is to be written, to be told of by `add` when it is whole."""
        file = self._path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def add(
        self,
        name: str,
        holds: str | None = None,
        rows: int | None = None,
        query: str | None = None,
    ) -> ExportedFile:
        """Takes a file that is whole into the manifest."""
        file = self._path / name
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        found = ExportedFile(name, holds, rows, file.stat().st_size, digest, query)
        self._files.append(found)
        return found

    def add_text(self, name: str, content: str) -> ExportedFile:
        """Writes a file that is no table."""
        self.new_file(name).write_text(content, encoding="utf-8", newline="\n")
        return self.add(name)

    def write_manifest(self, facts: dict[str, Any]) -> tuple[ExportedFile, ...]:
        """Writes the manifest, with these facts of the export before its files."""
        listed = [asdict(each) for each in sorted(self._files, key=lambda each: each.file)]
        content = {"made_by": _MADE_BY, **facts, "files": listed}
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        self.new_file(MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        return tuple(self._files)


@contextmanager
def written_export(target: Path, overwrite: bool = False) -> Iterator[ExportFolder]:
    """A folder to write an export into, which takes its place when the block ends well.

    Args:
        target: where the export is to lie; its parents are made.
        overwrite: take the place of what lies there. Files that an earlier export did not write
            and this one does not either stay.

    Raises:
        UserMistake: there is something already; it is a file, or a run.
        StoreError: the disk refuses it.
    """
    target = target.absolute()
    with clear_disk_errors(target):
        _check_target(target, overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(target)
        unfinished = target.parent / f"{_unfinished_prefix(target)}{os.getpid()}"
        unfinished.mkdir()
        try:
            yield ExportFolder(unfinished)
            _flush(unfinished)
            _check_target(target, overwrite)
            _put_in_place(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        lying = sorted(entry.name for entry in target.iterdir())
        if "run.toml" in lying or "scopenote.duckdb" in lying:
            raise UserMistake(
                "An export cannot be written over a run.",
                where=str(target),
                found="the folder of a run",
                expected="a new or empty folder",
                mend="name another folder with `--to`",
            )
        if lying and not overwrite:
            more = ", …" if len(lying) > _LISTED else ""
            raise UserMistake(
                "The folder to export to is not empty.",
                where=str(target),
                found=", ".join(lying[:_LISTED]) + more,
                expected="a new or empty folder",
                mend="name another folder with `--to`, or add `--overwrite`",
            )
    elif target.exists() or target.is_symlink():
        raise UserMistake(
            "The folder to export to cannot be made: a file is in the way.",
            where=str(target),
            found="a file",
            expected="a folder, or nothing",
            mend="name another folder with `--to`",
        )


def _put_in_place(new: Path, target: Path) -> None:
    """Swaps the folders; what stood in the old one and is nobody's export moves into the new."""
    if not target.is_dir():
        new.rename(target)
        return
    aside = new.with_name(f"{new.name}-before")
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _keep_others(aside, target, Path(), _exported_names(aside))
    shutil.rmtree(aside)


def _keep_others(old: Path, new: Path, inside: Path, exported: set[str]) -> None:
    """Moves over what no export wrote, such as `.git`, unless the new one has something there."""
    for entry in list((old / inside).iterdir()):
        there = inside / entry.name
        name = there.as_posix()
        is_shared = (new / there).is_dir() or any(each.startswith(f"{name}/") for each in exported)
        if entry.is_dir() and not entry.is_symlink() and is_shared:
            _keep_others(old, new, there, exported)
        elif name not in exported and not (new / there).exists():
            (new / inside).mkdir(parents=True, exist_ok=True)
            entry.rename(new / there)


def _exported_names(folder: Path) -> set[str]:
    """What an earlier export wrote into it, by its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"] == _MADE_BY:
            return {MANIFEST, *(each["file"] for each in manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or not ours: then all that lies there is somebody else's
    return set()


def _unfinished_prefix(target: Path) -> str:
    return f".{target.name}.unfinished-"


def _clear_unfinished(target: Path) -> None:
    """Removes what exports that were killed left beside it."""
    prefix = _unfinished_prefix(target)
    for left in target.parent.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix)
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _flush(folder: Path) -> None:
    """Has all of it on the disk before it is renamed."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
