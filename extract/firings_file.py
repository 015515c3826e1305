"""A file that holds what fires in windows, beside the process's memory.

What a feature does in the background pool is written once and read once, at the end of a part;
with many SAEs it is by far the most of what collecting holds.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np

from ..store.background import FIRING_ARRAYS, WindowFirings


class StoredFirings(NamedTuple):
    """Where one window's firings lie in the file."""

    occurrence: int
    begin: int
    n_features: int
    n_firings: int

    @property
    def n_bytes(self) -> int:
        """Its length in the file."""
        return sum(
            np.dtype(dtype).itemsize * n
            for dtype, n in zip(FIRING_ARRAYS.values(), self._lengths, strict=True)
        )

    @property
    def _lengths(self) -> tuple[int, ...]:
        return self.n_features, self.n_features, self.n_firings, self.n_firings


class FiringsFile:
    """Firings of windows in a file without a name, which goes when the process does.

    Args:
        folder: on whose disk; by default the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        # Open for as long as this object lives.
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._end = 0

    @property
    def n_bytes(self) -> int:
        """Its size, with what is no longer wanted."""
        return self._end

    def add(self, window: WindowFirings) -> StoredFirings:
        """Writes one window's firings at the end."""
        content = b"".join(getattr(window, name).data for name in FIRING_ARRAYS)
        self._file.seek(self._end)
        self._file.write(content)
        stored = StoredFirings(
            window.occurrence, self._end, len(window.feature), len(window.position)
        )
        self._end += len(content)
        return stored

    def read(self, stored: StoredFirings) -> WindowFirings:
        """One window's firings, as they were added."""
        self._file.seek(stored.begin)
        content = self._file.read(stored.n_bytes)
        arrays: list[np.ndarray] = []
        begin = 0
        for dtype, n in zip(FIRING_ARRAYS.values(), stored._lengths, strict=True):
            arrays.append(np.frombuffer(content, dtype, n, begin))
            begin += arrays[-1].nbytes
        return WindowFirings(stored.occurrence, *arrays)

    def compact(self, kept: dict[tuple[int, int], list[StoredFirings]]) -> None:
        """Gives back the room of what is not in `kept`, once that is more than half of the file.

        The places in `kept` are replaced.
        """
        n_kept = sum(stored.n_bytes for copies in kept.values() for stored in copies)
        if self._end <= 2 * n_kept:
            return
        rewritten = FiringsFile(self._folder)
        for copies in kept.values():
            copies[:] = [rewritten.add(self.read(stored)) for stored in copies]
        self.close()
        self._file, self._end = rewritten._file, rewritten._end

    def close(self) -> None:
        """Removes the file."""
        self._file.close()
