"""Keeps Prefect to the run's own folder: its home, its temporary server, its silence.

Prefect would otherwise use the profile, server and database in the user's home, tell a company
about it, and start a server of its own that outlives a killed run. So before Prefect is imported
the environment is set for the run, and a server is started here, early, beside everything else
that has to load. It ends with this process, however that ends (`prefect_server.py`); one that
did not is found by its record and ended at the next start. Nothing here imports Prefect.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..store.errors import StoreError
from ..store.run_folder import RunFolder, clear_disk_errors

_SERVER_MODULE = "scopenote.flows.prefect_server"
_STOP_SECONDS = 5.0

# Prefect's own layout, but into a file: it logs each failure with a traceback, on top of the
# one clear message that the command line gives.
_LOGGING = """\
version: 1
disable_existing_loggers: false
formatters:
  standard:
    (): prefect.logging.formatters.PrefectFormatter
    format: "%(asctime)s %(levelname)s %(name)s: %(message)s"
    flow_run_fmt: "%(asctime)s %(levelname)s flow run %(flow_run_name)r: %(message)s"
    task_run_fmt: "%(asctime)s %(levelname)s task run %(task_run_name)r: %(message)s"
handlers:
  file:
    class: logging.FileHandler
    filename: FILENAME
    encoding: utf-8
    delay: true
    formatter: standard
  api: {class: prefect.logging.handlers.APILogHandler}
loggers:
  prefect: {level: INFO}
  prefect._internal: {level: ERROR}
root: {level: WARNING, handlers: [file]}
"""
# The user's own server is sent what its pages show.
_TO_SERVER = """\
  prefect.flow_runs: {level: NOTSET, handlers: [api]}
  prefect.task_runs: {level: NOTSET, handlers: [api]}
"""


# Where this process keeps Prefect: a folder, whether to the user's own server, and ours if not.
_isolated: dict[tuple[Path, bool], PrefectServer | None] = {}


@dataclass(frozen=True, slots=True)
class PrefectServer:
    """The temporary server of this process."""

    process: subprocess.Popen[bytes]
    record: Path
    log: Path
    # Its other end is the server's standard input: closed by whatever ends this process.
    lifeline: int

    def stop(self) -> None:
        """Ends the server and forgets it; calling twice does no harm."""
        with contextlib.suppress(OSError):
            os.close(self.lifeline)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.record.unlink(missing_ok=True)

    def require_alive(self) -> None:
        """Raises a StoreError that shows the server's last words, if it has died."""
        if self.process.poll() is None:
            return
        last_words = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise StoreError(
            "Prefect's temporary server has stopped.",
            where=str(self.log),
            found="".join(last_words) or f"exit status {self.process.returncode}",
            mend="give the same command again: what was finished is kept",
        )


def isolate_prefect(folder: RunFolder, use_own_server: bool = False) -> PrefectServer | None:
    """Gives Prefect its home in the run's folder and a server for as long as this process lives.

    Must come before Prefect is imported, which reads the environment then. Once a process is
    enough: for the same folder the same server goes on.

    Args:
        folder: the run; no other process may work on it (hold its lock).
        use_own_server: leave the user's profile, server and settings as they are.

    Returns:
        The server, already starting; None if the user's own is used.
    """
    place = (folder.path.resolve(), use_own_server)
    if place in _isolated:
        return _isolated[place]
    if "prefect" in sys.modules:
        raise RuntimeError("isolate_prefect() must be called before prefect is imported")
    end_orphan(folder)
    # Telemetry stays off also where the user's own server is used.
    os.environ["DO_NOT_TRACK"] = "1"
    if use_own_server:
        own = {"PREFECT_LOGGING_LEVEL", "PREFECT_LOGGING_SETTINGS_PATH"}
        if not own.intersection(os.environ):
            path = folder.prefect_home.absolute() / "logging.yml"
            _write_logging(folder, path, _LOGGING.replace("root:", f"{_TO_SERVER}root:"))
            os.environ["PREFECT_LOGGING_SETTINGS_PATH"] = str(path)
        _isolated[place] = None
        return None
    environment = isolated_environment(folder)
    # A level that was asked for is meant to be seen: then Prefect logs to the terminal.
    if "PREFECT_LOGGING_LEVEL" not in environment:
        _write_logging(folder, Path(environment["PREFECT_LOGGING_SETTINGS_PATH"]), _LOGGING)
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ.update(environment)
    server, url = start_server(folder)
    os.environ["PREFECT_API_URL"] = url
    # Registered before Prefect registers its own, and so called after they have sent their last.
    atexit.register(server.stop)
    _isolated[place] = server
    return server


def isolated_environment(folder: RunFolder) -> dict[str, str]:
    """The variables that keep Prefect to the run's folder, quiet and to itself."""
    home = folder.prefect_home.absolute()
    level = os.environ.get("PREFECT_LOGGING_LEVEL")
    logging = {"PREFECT_LOGGING_SETTINGS_PATH": str(home / "logging.yml")}
    return {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        # What happened is the store's to record; sending each line costs and tells nobody.
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        **({"PREFECT_LOGGING_LEVEL": level} if level else logging),
    }


@contextlib.contextmanager
def without_heartbeats() -> Iterator[None]:
    """Flows begun in here send no heartbeats, and end a second sooner.

    A heartbeat is for a server that watches over machines; here it only makes each flow wait
    for the thread that sends it (measured: 1.17 s a flow with, 0.17 s without). No variable
    can turn it off.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _write_logging(folder: RunFolder, path: Path, content: str) -> None:
    # JSON's quoting is YAML's; Prefect fills in `$NAME` templates.
    filename = json.dumps(str(folder.logs.absolute() / "prefect.log")).replace("$", "$$")
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.logs.mkdir(parents=True, exist_ok=True)
        path.write_text(content.replace("FILENAME", filename), encoding="utf-8")


def end_orphan(folder: RunFolder) -> bool:
    """Ends the server of a killed run, if one is recorded and still lives; True if it did."""
    record = _record(folder)
    recorded = _read_record(record)
    if recorded is None:
        record.unlink(missing_ok=True)
        return False
    pid, token = recorded.pid, recorded.token
    # A process id is used again; the token in the command line is not.
    was_alive = token in _command_line(pid)
    if was_alive:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kind)
            deadline = time.monotonic() + _STOP_SECONDS
            while token in _command_line(pid) and time.monotonic() < deadline:
                time.sleep(0.02)
    record.unlink(missing_ok=True)
    return was_alive


def living_server(folder: RunFolder) -> str | None:
    """The address of the server that another process has started here and that lives."""
    recorded = _read_record(_record(folder))
    if recorded is None or recorded.token not in _command_line(recorded.pid):
        return None
    return _address(recorded.port)


def start_server(
    folder: RunFolder, port: int = 0, is_lasting: bool = False
) -> tuple[PrefectServer, str]:
    """Starts a server that ends with this process, and gives its address.

    Args:
        folder: whose Prefect home is already in the environment.
        port: on loopback; 0 for any that is free.
        is_lasting: with schedules and web pages, not only what one flow needs.

    Raises:
        OSError: the port is taken.
    """
    folder.prefect_home.mkdir(parents=True, exist_ok=True)
    folder.logs.mkdir(parents=True, exist_ok=True)
    log = folder.logs / "prefect_server.log"
    token = secrets.token_hex(8)
    kind = ["lasting"] if is_lasting else []
    read_end, write_end = os.pipe()
    # The socket listens from now on, so whoever calls before the server is up only waits.
    with socket.create_server(("127.0.0.1", port)) as listener, clear_disk_errors(log):
        port = listener.getsockname()[1]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", _SERVER_MODULE, str(listener.fileno()), token, *kind],
                stdin=read_end,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                # Its own session: Ctrl-C in the terminal is for us alone to answer.
                start_new_session=True,
                # Prefect reads settings from files where it stands: none of the user's.
                cwd=folder.prefect_home,
                env={**os.environ, "PREFECT_LOGGING_SETTINGS_PATH": os.devnull + "/none"},
            )
    os.close(read_end)
    record = _record(folder)
    with clear_disk_errors(record):
        record.write_text(json.dumps({"pid": process.pid, "token": token, "port": port}))
    return PrefectServer(process, record, log, write_end), _address(port)


def _address(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


class _Record(NamedTuple):
    pid: int
    token: str
    port: int


def _record(folder: RunFolder) -> Path:
    return folder.prefect_home / "server.json"


def _read_record(file: Path) -> _Record | None:
    try:
        recorded = json.loads(file.read_bytes())
        return _Record(int(recorded["pid"]), str(recorded["token"]), int(recorded.get("port", 0)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _command_line(pid: int) -> str:
    """The command line of a living process; empty if there is none, or it has only to be reaped."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        with contextlib.suppress(OSError):
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    found = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout
