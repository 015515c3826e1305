"""Prefect keeps to the run's folder, and leaves nothing behind, however a run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scopenote.flows.prefect_home import (
    _command_line,
    end_orphan,
    isolate_prefect,
    isolated_environment,
)
from scopenote.store.run_folder import RunFolder

RUN_A_FLOW = """
import os, sys, time
from pathlib import Path
from scopenote.flows.prefect_home import isolate_prefect, without_heartbeats
from scopenote.store.run_folder import RunFolder

server = isolate_prefect(RunFolder(Path(sys.argv[1])))
from prefect import flow, task
from prefect.settings import get_current_settings

@task
def double(n):
    return 2 * n

@flow
def add(n):
    settings = get_current_settings()
    print("settings", settings.home, settings.api.url, flush=True)
    print("heartbeat", settings.flows.heartbeat_frequency, flush=True)
    return sum(future.result() for future in double.map(range(n)))

with without_heartbeats():
    print("sum", add(5), server.process.pid, flush=True)
time.sleep(float(sys.argv[2]))
"""

START_A_SERVER = """
import sys, time
from pathlib import Path
from scopenote.flows.prefect_home import isolate_prefect
from scopenote.store.run_folder import RunFolder
print(isolate_prefect(RunFolder(Path(sys.argv[1]))).process.pid, flush=True)
time.sleep(60)
"""


def python(
    code: str, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def becomes_true(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def has_gone(pid: int) -> bool:
    return not _command_line(pid)


def test_the_environment_points_nowhere_but_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL", raising=False)
    environment = isolated_environment(RunFolder(tmp_path))
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    for name in ("PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_LOGGING_SETTINGS_PATH"):
        assert Path(environment[name]).is_relative_to(tmp_path / "prefect")


def test_a_log_level_that_was_asked_for_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    environment = isolated_environment(RunFolder(tmp_path))
    assert environment["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert "PREFECT_LOGGING_SETTINGS_PATH" not in environment


def test_prefect_imported_too_early_is_a_defect_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prefect", sys)
    with pytest.raises(RuntimeError, match="before prefect is imported"):
        isolate_prefect(RunFolder(tmp_path))


def test_the_users_own_server_is_left_alone_when_asked(tmp_path: Path) -> None:
    code = """
    import os, sys
    from pathlib import Path
    from scopenote.flows.prefect_home import isolate_prefect
    from scopenote.store.run_folder import RunFolder
    print(isolate_prefect(RunFolder(Path(sys.argv[1])), use_own_server=True))
    print(os.environ["PREFECT_API_URL"], os.environ["DO_NOT_TRACK"])
    """
    theirs = {"PREFECT_API_URL": "http://theirs/api"}
    output, errors = python(code, tmp_path, environment=theirs).communicate(timeout=30)
    assert output == "None\nhttp://theirs/api 1\n", errors


def test_a_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = python(START_A_SERVER, RunFolder(tmp_path).create().path)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # The command line is empty for a moment while a program is being loaded.
    assert becomes_true(lambda: "scopenote.flows.prefect_server" in _command_line(pid))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert becomes_true(lambda: has_gone(pid))


def test_a_server_that_outlived_its_run_is_ended_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stopped, it sees neither that its parent is gone nor that it is asked to end.
    monkeypatch.setattr("scopenote.flows.prefect_home._STOP_SECONDS", 0.5)
    folder = RunFolder(tmp_path).create()
    parent = python(START_A_SERVER, folder.path)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert becomes_true(lambda: not has_gone(pid))
    assert end_orphan(folder) is True
    assert becomes_true(lambda: has_gone(pid))
    assert not (folder.prefect_home / "server.json").exists()


def test_another_process_with_the_recorded_number_is_left_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    bystander = python("import time; time.sleep(60)")
    try:
        record = folder.prefect_home / "server.json"
        record.write_text(json.dumps({"pid": bystander.pid, "token": "0123456789abcdef"}))
        assert end_orphan(folder) is False
        assert bystander.poll() is None
        assert not record.exists()
    finally:
        bystander.kill()
        bystander.communicate()


def test_a_damaged_record_is_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    (folder.prefect_home / "server.json").write_text("{")
    assert end_orphan(folder) is False
    assert end_orphan(folder) is False


@pytest.mark.slow
def test_a_flow_runs_in_the_runs_own_home_and_leaves_no_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    elsewhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "HOME": str(tmp_path / "home")}
    flow = python(RUN_A_FLOW, folder.path, 0, environment=elsewhere)
    output, errors = flow.communicate(timeout=120)
    said = dict(line.split(" ", 1) for line in output.splitlines())
    total, pid = said["sum"].split()
    assert (total, errors) == ("20", "")
    assert said["settings"].startswith(f"{folder.prefect_home} http://127.0.0.1:")
    assert (folder.prefect_home / "prefect.db").exists()
    assert not (tmp_path / "home").exists()
    assert said["heartbeat"] == "None"
    assert has_gone(int(pid))
    assert not (folder.prefect_home / "server.json").exists()


@pytest.mark.slow
def test_a_flow_killed_at_work_leaves_no_process_and_the_next_one_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    flow = python(RUN_A_FLOW, folder.path, 60)
    assert flow.stdout is not None
    lines = [flow.stdout.readline() for _ in range(3)]
    pid = int(lines[-1].split()[-1])
    flow.send_signal(signal.SIGKILL)
    flow.communicate()
    assert becomes_true(lambda: has_gone(pid))
    again, errors = python(RUN_A_FLOW, folder.path, 0).communicate(timeout=120)
    assert "sum 20" in again, errors
