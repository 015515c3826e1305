"""The memory of a machine and of its containers, in made-up trees of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest
from scopenote.extract.machine_memory import free_memory_bytes, total_memory_bytes

MEBI = 2**20
NO_LIMIT_1, NO_LIMIT_2 = "9223372036854771712", "max"
IN_FIRST = "4:cpu,memory:{}\n2:cpu:/other\n0::/unlimited\n"
IN_SECOND = "0::{}\n"


def make_tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A machine with 4 GiB to spare, whose /proc/self/cgroup says `groups`."""
    files = {
        "proc/self/cgroup": groups,
        "proc/meminfo": "MemTotal:  24000000 kB\nMemFree:  100 kB\nMemAvailable:  4194304 kB\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


WHOLE = total_memory_bytes(Path("/no/such/root"))


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        # In a container of its own the group is the mount.
        (IN_SECOND.format("/"), {"memory.max": f"{100 * MEBI}\n"}, 100 * MEBI),
        (IN_FIRST.format("/"), {"memory/memory.limit_in_bytes": f"{100 * MEBI}"}, 100 * MEBI),
        # The path is the host's, and not to be seen in here.
        (IN_FIRST.format("/docker/ab"), {"memory/memory.limit_in_bytes": "9000"}, 9000),
        (IN_SECOND.format("/../ab"), {"memory.max": "9000", "../ab/memory.max": "1"}, 9000),
        # A group below the mount, as batch schedulers make them; both versions at once.
        (IN_SECOND.format("/a/b"), {"a/b/memory.max": "9000", "a/memory.max": "max"}, 9000),
        (IN_SECOND.format("/a/b"), {"unified/a/b/memory.max": "9000"}, 9000),
        (IN_FIRST.format("/a b"), {"memory/a b/memory.limit_in_bytes": "9000"}, 9000),
        # The tightest of those around it.
        (IN_SECOND.format("/a/b"), {"a/b/memory.max": "9000", "a/memory.max": "8000"}, 8000),
        # Not its own.
        (IN_SECOND.format("/a"), {"a/b/memory.max": "8000", "c/memory.max": "8000"}, None),
        (IN_FIRST.format("/a"), {"cpu/other/memory.limit_in_bytes": "8000"}, None),
        # None is set.
        (IN_SECOND.format("/"), {"memory.max": NO_LIMIT_2}, None),
        (IN_FIRST.format("/"), {"memory/memory.limit_in_bytes": NO_LIMIT_1}, None),
        (IN_SECOND.format("/"), {}, None),
    ],
)
def test_the_memory_is_that_of_the_tightest_group(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    assert total_memory_bytes(make_tree(tmp_path, groups, files)) == (limit or WHOLE)


def test_without_cgroups_it_is_the_machine_s() -> None:
    assert WHOLE > 2**28


@pytest.mark.parametrize(
    ("used", "dropped", "free"),
    [(30, 0, 70), (30, 10, 80), (100, 0, 0), (130, 0, 0), (10, 20, 100)],
)
@pytest.mark.parametrize("version", [1, 2])
def test_free_is_what_the_group_has_left(
    tmp_path: Path, version: int, used: int, dropped: int, free: int
) -> None:
    if version == 1:
        stat = f"inactive_file 5\ntotal_inactive_file {dropped * MEBI}\n"
        contents = {"limit_in_bytes": f"{100 * MEBI}", "usage_in_bytes": f"{used * MEBI}"}
        groups, folder = IN_FIRST.format("/g"), "memory/g"
    else:
        stat = f"file 7\ninactive_file {dropped * MEBI}\n"
        contents = {"max": f"{100 * MEBI}", "current": f"{used * MEBI}"}
        groups, folder = IN_SECOND.format("/g"), "g"
    files = {f"{folder}/memory.{name}": text for name, text in {**contents, "stat": stat}.items()}
    assert free_memory_bytes(make_tree(tmp_path, groups, files)) == free * MEBI


def test_without_a_limit_free_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    files = {"memory.max": NO_LIMIT_2, "memory.current": "1"}
    assert free_memory_bytes(make_tree(tmp_path, IN_SECOND.format("/"), files)) == 2**32
    assert free_memory_bytes(tmp_path / "missing") is None
