"""The memory that this process may take: the machine's, or its container's where that is less.

Linux limits groups of processes (cgroups), each within the one that it lies in; containers and
batch schedulers use that. Elsewhere there are no such limits to read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""Where /proc and /sys lie."""


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of cgroups calls what it tells, and where it tells it.

    Attributes:
        mounts: where the groups lie; `unified` where both versions are in use.
        limit: the file with the most bytes that a group may take.
        used: the file with those that it takes.
        reclaimable: the line of memory.stat with what is dropped when others need it.
    """

    mounts: tuple[str, ...]
    limit: str
    used: str
    reclaimable: str


_FIRST = _Files(
    ("sys/fs/cgroup/memory",),
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)
_SECOND = _Files(
    ("sys/fs/cgroup", "sys/fs/cgroup/unified"), "memory.max", "memory.current", "inactive_file"
)


def total_memory_bytes(root: Path | None = None) -> int:
    """The memory of this machine, or what a group that this process is in may take, if less.

    Args:
        root: instead of ROOT.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(limit for limit, _ in _limits(root or ROOT))])


def free_memory_bytes(root: Path | None = None) -> int | None:
    """Memory that can be taken without swapping or passing a limit; None if nothing tells.

    Args:
        root: instead of ROOT.
    """
    root = root or ROOT
    available = _number_after("MemAvailable:", root / "proc/meminfo")
    if available is None:
        return None
    rooms = (limit - used for limit, used in _limits(root))
    return max(0, min([available * 1024, *rooms]))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Of each limited group that this process is in: its limit and what it takes."""
    for folder, files in _groups(root):
        limit = _read(folder / files.limit)
        # The second version writes `max` where there is none.
        if limit.isdecimal():
            used = _read(folder / files.used)
            dropped = _number_after(files.reclaimable, folder / "memory.stat") or 0
            yield int(limit), max(0, int(used) - dropped) if used.isdecimal() else 0


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of the groups that this process is in, each with those around it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            files = _FIRST
        elif number == "0":
            files = _SECOND
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts:
            # The group lies outside of what this container can see.
            inside = PurePosixPath()
        # In a container its own group is often the mount itself, whatever the path says.
        for mount in files.mounts:
            for place in (inside, *inside.parents):
                yield root / mount / place, files


def _number_after(name: str, file: Path) -> int | None:
    for line in _read(file).splitlines():
        if line.split()[:1] == [name]:
            return int(line.split()[1])
    return None


def _read(file: Path) -> str:
    """The file's text; nothing where the system has no such file."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
