"""Requests to models in files, one a line, for what is too many to be held in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from .records import RecordedRequest


class RequestFile:
    """A file of requests that is being written; each of them once.

    A context manager. What was there before under its name is overwritten.
    """

    def __init__(self, file: Path) -> None:
        self.path = file
        self._hashes: set[str] = set()
        self._file = file.open("wb")

    def add(self, request: RecordedRequest) -> bool:
        """Writes a request, unless it is there already; whether it was written."""
        if request.request_hash in self._hashes:
            return False
        self._file.write(_line(request))
        self._hashes.add(request.request_hash)
        return True

    @property
    def hashes(self) -> frozenset[str]:
        """The requests' hashes."""
        return frozenset(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def close(self) -> None:
        """Brings all of it onto the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_requests(file: Path) -> Iterator[RecordedRequest]:
    """The requests of a file, in the order of writing."""
    with file.open("rb") as lines:
        for line in lines:
            yield _request(line)


class RequestIndex:
    """A file of requests in which they are found by their hashes; a context manager.

    In memory are the places of their lines only.
    """

    def __init__(self, file: Path) -> None:
        self._places: dict[str, int] = {}
        self._file = file.open("rb")
        place = 0
        for line in self._file:
            self._places[json.loads(line)["request_hash"]] = place
            place += len(line)

    @property
    def hashes(self) -> frozenset[str]:
        """The requests' hashes."""
        return frozenset(self._places)

    def __getitem__(self, request_hash: str) -> RecordedRequest:
        self._file.seek(self._places[request_hash])
        return _request(self._file.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _line(request: RecordedRequest) -> bytes:
    # With escapes: a text may hold what UTF-8 does not, and has to come back as it was.
    record = {
        "request_hash": request.request_hash,
        "request": dict(request.request),
        "n_static": request.n_static,
        "draw": request.draw,
    }
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _request(line: bytes) -> RecordedRequest:
    return RecordedRequest(**json.loads(line))
