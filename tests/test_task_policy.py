"""What is retried and what is not, with faults that a disk really has."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scopenote.flows.task_policy import is_transient, noting_retries, patiently, retry_notes
from scopenote.store.errors import EndpointRefuses, StoreError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("timed out"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_trouble_of_disks_networks_and_devices_may_pass(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        StoreError("The database is damaged."),
        EndpointRefuses("the endpoint refuses the key"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("expected a tensor of another shape"),
        TypeError("unsupported operand"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_wrong_stays_wrong(error: BaseException) -> None:
    assert not is_transient(error)


def unreadable_once(file: Path) -> None:
    """Puts in the file's place what the kernel refuses to read: a process's own empty page."""
    file.rename(file.with_suffix(".kept"))
    file.symlink_to("/proc/self/mem")


def mend(file: Path) -> None:
    file.unlink()
    file.with_suffix(".kept").rename(file)


def test_a_file_that_cannot_be_read_once_is_read_the_second_time(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("as it was")
    unreadable_once(file)
    n_tried = 0

    def read() -> str:
        nonlocal n_tried
        n_tried += 1
        if n_tried == 2:
            mend(file)
        return file.read_text()

    with noting_retries() as noted:
        assert patiently("reading the corpus", read) == "as it was"
    assert n_tried == 2
    (note,) = retry_notes(noted)
    assert note.startswith("reading the corpus (OSError: [Errno 5] Input/output error")
    assert note.endswith("was begun again once")


def test_what_may_not_be_read_is_tried_once(tmp_path: Path) -> None:
    n_tried = 0

    def read() -> str:
        nonlocal n_tried
        n_tried += 1
        return (tmp_path / "nothing").read_text()

    with noting_retries() as noted, pytest.raises(FileNotFoundError):
        patiently("reading", read)
    assert (n_tried, retry_notes(noted)) == (1, ())


# A flow of ours whose tasks read a file that another process mends when the first has failed.
A_FLOW = """
import sys
from pathlib import Path
from prefect import flow
from scopenote.flows.runner_settings import RunnerSection
from scopenote.flows.runners import task_runner
from scopenote.flows.task_policy import noting_retries, retried_task, retry_notes
from scopenote.store.errors import StoreError
from scopenote.store.run_folder import RunFolder

file = Path(sys.argv[1])

def read():
    print("reads", flush=True)
    if file.is_symlink():
        sys.stdin.readline()
    return file.read_text()

@retried_task("read")
def read_file(runner):
    return runner.call(read)

@retried_task("refuse")
def refuse(runner):
    print("refuses", flush=True)
    raise StoreError("no")

@flow
def work():
    with task_runner(RunnerSection(), RunFolder(file.parent)) as runner, noting_retries() as noted:
        print(runner.submit(read_file).result(), *retry_notes(noted), sep="; ", flush=True)
        try:
            runner.submit(refuse).result()
        except StoreError as error:
            print("refused:", error, flush=True)

work()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_task_is_retried_in_a_flow_and_that_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("as it was")
    unreadable_once(file)
    process = subprocess.Popen(
        [sys.executable, "-c", A_FLOW, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PREFECT_LOGGING_LEVEL": "CRITICAL"},
    )
    assert process.stdin is not None is not process.stdout
    assert process.stdout.readline() == "reads\n"
    process.stdin.write("\n")  # it meets the fault now
    process.stdin.flush()
    assert process.stdout.readline() == "reads\n"
    mend(file)
    process.stdin.write("\n")
    process.stdin.close()
    said = process.stdout.read()
    assert process.wait(120) == 0
    assert said.startswith("as it was; a task of read (OSError: [Errno 5] Input/output error")
    assert "was begun again once" in said
    assert said.count("refuses") == 1
    assert "refused: no" in said
