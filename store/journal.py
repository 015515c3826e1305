"""The journal: each reply of a model is on disk before it is used.

Every process that calls models writes a file of its own into the run's `journal/`, one JSON
object a line: a call, or messages that the calls after it share. `kill -9` loses nothing that
`append` has returned from, because the kernel has it by then; it may leave a torn last line,
which is dropped when read, and counted. A power cut loses what was not yet flushed to disk: the
replies of some 50 milliseconds, which are paid for again. A thread flushes, so that nobody waits.

What stands in a line is in `journal_lines.py`, reading in `journalled_calls.py`, and how calls get
into the database in `calls.py`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread
from typing import BinaryIO
from uuid import uuid4

from .journal_lines import call_line, messages_line, split_request
from .records import Call
from .run_folder import clear_disk_errors

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".jsonl"
_SECONDS_BETWEEN_FLUSHES = 0.05


class Journal:
    """Where one process journals its calls; its threads may share it.

    Nothing is made before the first call. Use it as a context manager, or call `close`.
    """

    def __init__(self, folder: Path, share: str = "") -> None:
        """A journal in this folder, the run's `journal/`.

        Args:
            folder: where its file is made.
            share: of what may be spent, on which its calls are made; in the file's name, by which
                whoever goes on with the work finds what others have spent of it.
        """
        self._folder = folder
        self._share = share
        self._lock = Lock()
        self._file: _OpenJournal | None = None

    def append(self, call: Call) -> Path:
        """Writes a call; when this returns, the death of the process does not lose it.

        Returns:
            The file that it stands in.

        Raises:
            StoreError: the disk is full or may not be written. The call is not journalled and
                must not be used; others after it may be journalled again.
        """
        with self._lock, clear_disk_errors(self._folder):
            if self._file is None:
                self._file = _OpenJournal(self._folder, self._share)
            self._file.append(call)
            return self._file.path

    def close(self) -> None:
        """Flushes to disk and lets others absorb the file; a further call begins another.

        Raises:
            StoreError: the disk refuses what was written.
        """
        with self._lock, clear_disk_errors(self._folder):
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OpenJournal:
    """A file that is being written, and the thread that flushes it to disk meanwhile."""

    def __init__(self, folder: Path, share: str) -> None:
        self.path, self._descriptor = _create(folder, share)
        self._shared: set[str] = set()
        self._is_torn = False
        self._unflushed, self._closing = Event(), Event()
        self._refused: OSError | None = None
        self._flushing = Thread(target=self._flush_in_groups, name="journal", daemon=True)
        self._flushing.start()

    def append(self, call: Call) -> None:
        self._raise_refusal()
        split = split_request(call)
        # What a full disk left half written must not swallow this line.
        lines = b"\n" if self._is_torn else b""
        if split.static_hash is not None and split.static_hash not in self._shared:
            lines += messages_line(split)
        lines += call_line(call, split)
        self._is_torn = True
        _write(self._descriptor, lines)
        self._is_torn = False
        if split.static_hash is not None:
            self._shared.add(split.static_hash)
        self._unflushed.set()

    def close(self) -> None:
        self._closing.set()
        self._unflushed.set()
        self._flushing.join()
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
        self._raise_refusal()

    def _flush_in_groups(self) -> None:
        while True:
            self._unflushed.wait()
            if self._closing.is_set():
                return
            self._unflushed.clear()
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                # For the next who writes: what the disk refused once it may not report again.
                self._refused = error
                return
            self._closing.wait(_SECONDS_BETWEEN_FLUSHES)

    def _raise_refusal(self) -> None:
        if self._refused is not None:
            raise self._refused


def _create(folder: Path, share: str) -> tuple[Path, int]:
    """A new file, locked for as long as its writer lives; names sort by the time of creation."""
    while True:
        name = f"{time.time_ns():020d}-{os.getpid()}-{uuid4().hex[:8]}"
        path = folder / f"{name}{_share_in_name(share)}{_SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Before it was locked, who absorbs may have found it empty, and removed it.
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)
    named_in = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(named_in)
    finally:
        os.close(named_in)
    return path, descriptor


def _share_in_name(share: str) -> str:
    return f"-{share}" if share else ""


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def list_journals(folder: Path, share: str = "") -> list[Path]:
    """The journals in a folder, or those of one share, oldest first."""
    return sorted(folder.glob(f"*{_share_in_name(share)}{_SUFFIX}"))


@contextmanager
def hold_ended(journal: Path) -> Iterator[BinaryIO | None]:
    """A journal for the one who absorbs and removes it, or None while its writer is at work.

    The writer's lock ends with its process, however that ends.
    """
    with journal.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


def has_ended(file: BinaryIO) -> bool:
    """Whether nobody writes this journal any more; others may ask the same at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True
