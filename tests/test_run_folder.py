"""The run's folder: what is in it, who may work on it, and what a disk may refuse."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from scopenote.store.errors import RunFolderBusy, StoreError, UserMistake
from scopenote.store.run_folder import RunFolder, clear_disk_errors

HOLD_LOCK = """
import sys, time
from pathlib import Path
from scopenote.store.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock("scopenote collect"):
    print("locked", flush=True)
    time.sleep(60)
"""


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_folder_is_made_once_and_again_without_harm(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run").create()
    folder.write_config("[model]\n")
    (folder.parts / "part").write_text("kept")
    assert RunFolder(folder.path).create().exists
    assert (folder.parts / "part").read_text() == "kept"
    for place in (folder.parts, folder.inbox, folder.journal, folder.logs, folder.prefect_home):
        assert place.is_dir()


def test_a_folder_left_half_made_is_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.parts.mkdir()
    folder.lock_file.touch()
    assert folder.create().logs.is_dir()


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserMistake, match=r"thesis\.tex"):
        RunFolder(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(UserMistake, match="a file is in the way"):
            RunFolder(path).create()


def test_what_is_no_run_is_answered_with_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, found in (
        (tmp_path / "none", "nothing"),
        (tmp_path, "a folder without run.toml"),
        (tmp_path / "file", "a file"),
    ):
        with pytest.raises(UserMistake) as caught:
            RunFolder.open_existing(path)
        assert caught.value.found == found
        assert f"scopenote demo --out {path}" in (caught.value.mend or "")


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = python(HOLD_LOCK, tmp_path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderBusy) as caught, RunFolder(tmp_path).lock("scopenote run"):
            pass
        assert f"process {holder.pid}, `scopenote collect`" in (caught.value.found or "")
        assert f"kill {holder.pid}" in (caught.value.mend or "")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with RunFolder(tmp_path).lock("scopenote run"):
        assert json.loads(RunFolder(tmp_path).lock_file.read_text())["pid"] == os.getpid()


def test_a_lock_is_let_go_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.lock("one"):
        raise ZeroDivisionError
    with folder.lock("two"), pytest.raises(RunFolderBusy), folder.lock("three"):
        pass
    with folder.lock("four"):
        pass


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock("one"):
        child = python("import time; time.sleep(60)")
    try:
        with RunFolder(tmp_path).lock("two"):
            pass
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "The disk is full."),
        (errno.EDQUOT, "The disk is full."),
        (errno.EROFS, "The disk is read-only."),
        (errno.EACCES, "This may not be written."),
    ],
)
def test_what_a_disk_refuses_is_said_plainly(tmp_path: Path, number: int, what: str) -> None:
    place = str(tmp_path / "part")
    with pytest.raises(StoreError) as caught, clear_disk_errors(tmp_path):
        raise OSError(number, os.strerror(number), place)
    assert caught.value.what == what
    assert caught.value.where == place
    assert os.strerror(number) in (caught.value.found or "")


def test_a_full_disk_is_answered_with_the_bytes_that_are_free(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"\d bytes free"), clear_disk_errors(tmp_path / "new"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_library_that_hides_the_number_is_understood_by_its_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="disk is full"), clear_disk_errors(tmp_path):
        raise OSError("Error writing bytes to file: No space left on device")


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "x"), ValueError("No space left on device")):
        with pytest.raises(type(error)), clear_disk_errors(tmp_path):
            raise error


def test_a_limit_on_file_sizes_met_by_duckdb_is_said_plainly(tmp_path: Path) -> None:
    code = """
    import resource, signal, sys
    from pathlib import Path
    import duckdb
    from scopenote.store.errors import StoreError
    from scopenote.store.run_folder import clear_disk_errors
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    try:
        with clear_disk_errors(Path(sys.argv[1])):
            connection = duckdb.connect(sys.argv[1])
            connection.execute("CREATE TABLE t AS SELECT hash(i) AS h FROM range(2000000) r(i)")
            connection.execute("CHECKPOINT")
    except StoreError as error:
        print(error.what)
    """
    process = python(code, tmp_path / "small.duckdb")
    output, errors = process.communicate(timeout=60)
    assert output == "The disk is full.\n", errors


def test_a_full_disk_met_by_duckdb_is_said_plainly(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    import duckdb

    try:
        with pytest.raises(StoreError, match="The disk is full"), clear_disk_errors(tmp_path):
            connection = duckdb.connect(str(tmp_path / "small.duckdb"))
            connection.execute("CREATE TABLE t AS SELECT hash(i) AS h FROM range(2000000) r(i)")
            connection.execute("CHECKPOINT")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_folder_that_may_not_be_written_is_said_plainly(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="may not be written"):
            RunFolder(tmp_path / "run").create()
    finally:
        tmp_path.chmod(0o700)
