"""Reading journals back: each whole line a call, streamed, or found by its request.

A run that goes on after a kill sends nothing again whose reply stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .journal import list_journals
from .journal_lines import read_line
from .records import Call


class Placed(NamedTuple):
    """A call, and where its line begins."""

    call: Call
    offset: int


class JournalReading:
    """One journal, read line by line."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads this file, which the caller closes."""
        self._n_damaged = 0
        self._has_torn_end = False
        self._file = file
        self._offset = 0
        self._shared: dict[str, list[Any]] = {}

    @property
    def n_dropped(self) -> int:
        """Lines met so far that are not whole: torn by a kill (the last one), or damaged.

        Their requests count as never sent. Of a journal still written the last line may be on its
        way.
        """
        return self._n_damaged + self._has_torn_end

    def calls(self) -> Iterator[Placed]:
        """All whole calls, in the order of writing; from the second time on those that are new."""
        self._file.seek(self._offset)
        self._has_torn_end = False
        for line in self._file:
            if not line.endswith(b"\n"):
                self._has_torn_end = True
                return
            offset, self._offset = self._offset, self._offset + len(line)
            call = self._read(line)
            if call is not None:
                yield Placed(call, offset)

    def call_at(self, offset: int) -> Call:
        """The call of a line that `calls` gave."""
        self._file.seek(offset)
        call = self._read(self._file.readline())
        assert call is not None, "the line was whole when it was first read"
        return call

    def _read(self, line: bytes) -> Call | None:
        try:
            return read_line(line, self._shared)
        except ValueError:
            self._n_damaged += 1
            return None


class _Place(NamedTuple):
    reading: JournalReading
    offset: int
    has_reply: bool


class JournalledCalls:
    """The calls in a folder's journals, found by request, read from disk when they are asked for.

    Made before the database is asked, it misses nothing together with it: what is absorbed from
    then on stays readable here. In memory are places only. Use it as a context manager.
    """

    def __init__(self, folder: Path, only: Path | None = None) -> None:
        """Reads through all journals in this folder, the run's `journal/`, or through one."""
        self._folder = folder
        self._only = only
        self._readings: dict[Path, JournalReading] = {}
        self._places: dict[str, _Place] = {}
        self._files = ExitStack()
        self.read_on()

    @property
    def n_dropped(self) -> int:
        """Lines that were not whole."""
        return sum(reading.n_dropped for reading in self._readings.values())

    def read_on(self) -> None:
        """Reads what was written since."""
        for path in list_journals(self._folder) if self._only is None else [self._only]:
            # One that is gone by now was absorbed.
            with suppress(FileNotFoundError):
                if path not in self._readings:
                    self._readings[path] = JournalReading(
                        self._files.enter_context(path.open("rb"))
                    )
        for reading in self._readings.values():
            for call, offset in reading.calls():
                before = self._places.get(call.request_hash)
                # The first reply stays, for it is what was used; a failure gives way.
                if before is None or not before.has_reply:
                    place = _Place(reading, offset, call.reply is not None)
                    self._places[call.request_hash] = place

    def __len__(self) -> int:
        """How many requests have a call."""
        return len(self._places)

    def find(self, request_hash: str) -> Call | None:
        """What came of a request: the first reply, else the last failure, else None."""
        place = self._places.get(request_hash)
        return None if place is None else place.reading.call_at(place.offset)

    def close(self) -> None:
        """Lets the files go."""
        self._files.close()

    def __enter__(self) -> JournalledCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
