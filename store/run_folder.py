"""The folder a run lives in: where everything lies in it, and who may work on it.

Also turns what a disk answers (full, read-only, forbidden) into errors a person can act on.
What the files hold is not known here.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .errors import RunFolderBusy, StoreError, UserMistake

if sys.platform != "win32":
    import fcntl

_FOLDERS = ("parts", "inbox", "journal", "logs", "prefect")
_OTHERS = ("scopenote.duckdb", "work.duckdb", "run.toml", "run.lock", "corpus_files.json")
_OTHER_FOLDERS = ("shards", "batches")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder, which may not exist yet."""

    path: Path

    @property
    def database(self) -> Path:
        """The published database, replaced as a whole, which anyone may read."""
        return self.path / "scopenote.duckdb"

    @property
    def work_database(self) -> Path:
        """The database that the one writer works in."""
        return self.path / "work.duckdb"

    @property
    def parts(self) -> Path:
        """Where workers lay their finished parts."""
        return self.path / "parts"

    @property
    def inbox(self) -> Path:
        """Where what people write waits to be absorbed."""
        return self.path / "inbox"

    @property
    def journal(self) -> Path:
        """Where replies of models are kept before they are used."""
        return self.path / "journal"

    @property
    def batches(self) -> Path:
        """Where the requests of batches lie while a provider has them; made when it is needed."""
        return self.path / "batches"

    @property
    def logs(self) -> Path:
        """Where log files lie."""
        return self.path / "logs"

    @property
    def prefect_home(self) -> Path:
        """What Prefect takes for its home."""
        return self.path / "prefect"

    def shard(self, name: str) -> RunFolder:
        """What belongs to the one process that collects a shard: lock, logs, Prefect's home."""
        folder = RunFolder(self.path / "shards" / name)
        with clear_disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def scheduler(self) -> RunFolder:
        """What belongs to the one process that serves a schedule: lock, logs, Prefect's home."""
        return RunFolder(self.prefect_home / "schedule")

    @property
    def config_file(self) -> Path:
        """The configuration as resolved."""
        return self.path / "run.toml"

    @property
    def corpus_files(self) -> Path:
        """The names of the corpus's files in the order in which the run reads them."""
        return self.path / "corpus_files.json"

    @property
    def lock_file(self) -> Path:
        """Held by the process that works on this folder; it says which."""
        return self.path / "run.lock"

    @property
    def exists(self) -> bool:
        """Whether there is a run here."""
        return self.config_file.is_file()

    @classmethod
    def open_existing(cls, path: Path | str) -> RunFolder:
        """The run at `path`.

        Raises:
            UserMistake: if there is none.
        """
        folder = cls(Path(path))
        if folder.exists:
            return folder
        if not folder.path.exists():
            found = "nothing"
        elif folder.path.is_dir():
            found = "a folder without run.toml"
        else:
            found = "a file"
        raise UserMistake(
            "There is no run here.",
            where=str(path),
            found=found,
            expected="the folder of a run",
            mend=f"make one with `scopenote demo --out {path}` or "
            f"`scopenote run CONFIG --out {path}`",
        )

    def create(self) -> RunFolder:
        """Makes the folder and the folders in it, where they are missing.

        Raises:
            UserMistake: if other things lie there.
            StoreError: if it cannot be written.
        """
        with clear_disk_errors(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._refuse_strangers()
                for name in _FOLDERS:
                    (self.path / name).mkdir(exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise UserMistake(
                    "The run's folder cannot be made: a file is in the way.",
                    where=str(error.filename or self.path),
                    found="a file",
                    expected="a folder, or nothing",
                    mend="choose another folder with `--out`",
                ) from error
            # Root may write anywhere but on a read-only disk: ask the disk, not the mode bits.
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        return self

    def _refuse_strangers(self) -> None:
        if self.exists:
            return
        ours = {*_FOLDERS, *_OTHER_FOLDERS, *_OTHERS}
        strangers = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in ours and not entry.name.startswith(".")
        )
        if strangers:
            listed = ", ".join(strangers[:3]) + (", …" if len(strangers) > 3 else "")
            raise UserMistake(
                "The folder holds other things and no run.",
                where=str(self.path),
                found=listed,
                expected="a new or empty folder, or that of a run",
                mend="choose another folder with `--out`",
            )

    def write_config(self, toml: str) -> None:
        """Writes `run.toml`, all of it or nothing."""
        self._write_whole(self.config_file, toml)

    def read_corpus_files(self) -> tuple[str, ...]:
        """The names in `corpus_files.json`; none before anything was collected from a folder."""
        try:
            return tuple(json.loads(self.corpus_files.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ()

    def write_corpus_files(self, names: Sequence[str]) -> None:
        """Writes `corpus_files.json`, all of it or nothing."""
        if tuple(names) != self.read_corpus_files():
            self._write_whole(self.corpus_files, json.dumps(list(names), ensure_ascii=False))

    def _write_whole(self, file: Path, content: str) -> None:
        with clear_disk_errors(file):
            temporary = self.path / f".{file.stem}-{os.getpid()}{file.suffix}"
            temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, file)

    @contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Keeps others from working on this folder; a killed process lets go of it by dying.

        Args:
            command: what holds it, for the message that others get.

        Raises:
            RunFolderBusy: if another process holds it.
        """
        with clear_disk_errors(self.lock_file):
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._busy() from error
            except OSError as error:
                raise StoreError(
                    "The run's folder cannot be locked.",
                    where=str(self.lock_file),
                    found=error.strerror,
                    mend="choose a folder on a disk of this machine",
                ) from error
            started_at = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "command": command, "started_at": started_at}
            with clear_disk_errors(self.lock_file):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            yield
            # Emptied and not removed: a removed file could be locked twice, by its two inodes.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _busy(self) -> RunFolderBusy:
        try:
            holder = json.loads(self.lock_file.read_bytes())
            pid = holder["pid"]
            found = f"process {pid}, `{holder['command']}`, since {holder['started_at']}"
            mend = f"wait for it, or end it with `kill {pid}` (nothing finished is lost)"
        except (OSError, ValueError, TypeError, KeyError):
            found, mend = "a process that has only just begun", "wait for it"
        return RunFolderBusy(
            "Another process is working on this run.",
            where=str(self.path),
            found=found,
            expected="one at a time",
            mend=mend,
        )


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS}
_FORBIDDEN = {errno.EACCES, errno.EPERM}


@contextmanager
def clear_disk_errors(where: Path) -> Iterator[None]:
    """Says plainly what a disk refused while something under `where` was written.

    Raises:
        StoreError: for a full or read-only disk and for missing permission; all else passes.
    """
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        named = error.filename if isinstance(error, OSError) else None
        place = Path(named) if isinstance(named, str) else where
        raise _store_error(refusal, place, error) from error


def _refusal(error: Exception) -> int | None:
    """The errno that a disk answered with, also where a library hides it in its words."""
    known = _FULL | _READ_ONLY | _FORBIDDEN
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in known else None
    # Libraries speak of errors of the system in the words of the C library.
    if isinstance(error, OSError) or type(error).__module__.lstrip("_").startswith("duckdb"):
        return next((code for code in sorted(known) if os.strerror(code) in str(error)), None)
    return None


def _store_error(refusal: int, where: Path, error: Exception) -> StoreError:
    if refusal in _FULL:
        free = _free_bytes(where)
        return StoreError(
            "The disk is full.",
            where=str(where),
            found=os.strerror(refusal) + (f", {free:,} bytes free" if free is not None else ""),
            mend="make room and give the same command again: what was finished is kept",
        )
    if refusal in _READ_ONLY:
        return StoreError(
            "The disk is read-only.",
            where=str(where),
            found=os.strerror(refusal),
            mend="choose another folder with `--out`",
        )
    return StoreError(
        "This may not be written.",
        where=str(where),
        found=os.strerror(refusal),
        expected="permission to write",
        mend="change its permissions, or choose another folder with `--out`",
    )


def _free_bytes(where: Path) -> int | None:
    for place in (where, *where.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None
