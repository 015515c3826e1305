"""Gzipped files that are the same bytes for the same lines, packed in a thread beside the work."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# Level 6 takes half as long again for a twentieth of the size.
_LEVEL = 5
# Headers of gzip around it, with neither time nor name.
_GZIP = 31
# Pieces in memory that wait to be packed.
_WAITING = 2


class LinePacker:
    """Packs lines into one file after the other; `packed_lines` makes it."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._waiting: deque[Future[None]] = deque()
        self._file: Path | None = None
        self._handle: IO[bytes] | None = None
        self._packing: Any = None

    def append(self, file: Path, lines: bytes | memoryview) -> None:
        """Adds lines to a file; to another than the last time: that one is then whole."""
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(self._pack, file, lines))

    def finish(self) -> None:
        """Has all files whole."""
        while self._waiting:
            self._waiting.popleft().result()
        self._end()

    def _pack(self, file: Path, lines: bytes | memoryview) -> None:
        if file != self._file:
            self._end()
            self._file, self._handle = file, file.open("wb")
            self._packing = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        assert self._handle is not None, "just opened"
        self._handle.write(self._packing.compress(lines))

    def _end(self) -> None:
        if self._handle is not None:
            self._handle.write(self._packing.flush())
            self._handle.close()
        self._file = self._handle = self._packing = None


@contextmanager
def packed_lines() -> Iterator[LinePacker]:
    """Files to pack lines into, all of them whole when the block ends well."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="packing") as executor:
        packer = LinePacker(executor)
        try:
            yield packer
        finally:
            packer.finish()
