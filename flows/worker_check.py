"""What a worker must have in common with the process that gives it work, and how it begins."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .. import __version__


@dataclass(frozen=True, slots=True)
class WorkerFound:
    """What a process has and sees.

    Attributes:
        version: of Scopenote.
        run: a hash of the run's configuration as it stands on disk; None where there is none.
    """

    version: str
    run: str | None

    def __str__(self) -> str:
        return f"version {self.version}, " + (
            "no run in that folder" if self.run is None else f"run.toml with hash {self.run}"
        )


def look_around(folder: str) -> WorkerFound:
    """What this process has and sees of the run in this folder."""
    file = Path(os.path.join(folder, "run.toml"))
    content = file.read_bytes() if file.is_file() else None
    return WorkerFound(
        __version__, None if content is None else blake2b(content, digest_size=6).hexdigest()
    )


def dask_setup(worker: Any) -> None:
    """Called by Dask in each worker that it begins on this machine.

    Ctrl-C in a terminal is for the command alone to answer; its workers end with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
