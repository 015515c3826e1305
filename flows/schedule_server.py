"""`scopenote schedule --with-server`: a Prefect server and a worker for one run, in one process.

Both end with this process, however it ends; where one of them dies, it is started again.
Nothing here imports Prefect.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ..store.errors import StoreError, UserMistake
from ..store.run_folder import RunFolder, clear_disk_errors
from .prefect_home import PrefectServer, end_orphan, start_server
from .terminal import complain

_WORKER_MODULE = "scopenote.flows.prefect_worker"
_LOOK_SECONDS = 0.5
# The worker ends the flow first, which has five seconds, and Prefect looks every three.
_STOP_SECONDS = 30.0
_MOST_STARTS = 5
_STARTS_WITHIN_SECONDS = 300.0


@dataclass(slots=True)
class ScheduleServer:
    """The two processes.

    Attributes:
        folder: of the one process that serves the run's schedule; its lock is held.
        port: on loopback.
        pool: whose runs the worker takes.
    """

    folder: RunFolder
    port: int
    pool: str
    server: PrefectServer | None = None
    worker: subprocess.Popen[bytes] | None = None
    lifeline: int = -1
    starts: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def page(self) -> str:
        """For a browser."""
        return f"http://127.0.0.1:{self.port}"

    def start_server(self) -> None:
        """Starts it; it answers some seconds later."""
        self.server, _ = start_server(self.folder, self.port, is_lasting=True)

    def start_worker(self) -> None:
        """Starts it; what it and its flows say comes to standard error."""
        read_end, self.lifeline = os.pipe()
        self.worker = subprocess.Popen(
            [sys.executable, "-m", _WORKER_MODULE, self.pool],
            stdin=read_end,
            stdout=sys.stderr.fileno(),
            # Its own session: Ctrl-C in the terminal is for us alone to answer.
            start_new_session=True,
        )
        os.close(read_end)

    def watch(self) -> None:
        """Until a signal comes: starts again what dies.

        Raises:
            StoreError: it dies again and again.
        """
        while True:
            time.sleep(_LOOK_SECONDS)
            if self.server is not None and self.server.process.poll() is not None:
                self._count_start("The Prefect server", str(self.server.log))
                self.server.stop()
                self.start_server()
            if self.worker is not None and self.worker.poll() is not None:
                self._count_start("The worker", None)
                os.close(self.lifeline)
                self.start_worker()

    def _count_start(self, what: str, log: str | None) -> None:
        now = time.monotonic()
        self.starts = [each for each in self.starts if now - each < _STARTS_WITHIN_SECONDS]
        if len(self.starts) >= _MOST_STARTS:
            raise StoreError(
                f"{what} dies again and again.",
                where=log,
                found=f"{_MOST_STARTS + 1} times in {_STARTS_WITHIN_SECONDS / 60:.0f} minutes",
                mend="look into what it said last, and give the same command again",
            )
        self.starts.append(now)
        complain(f"{what} has died, and is started again.")

    def stop(self) -> None:
        """Ends the worker, by it the run under way, and then the server."""
        if self.worker is not None:
            with contextlib.suppress(ProcessLookupError):
                self.worker.terminate()
            try:
                self.worker.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.worker.kill()
                self.worker.wait()
            finally:
                os.close(self.lifeline)
                self.worker = None
        if self.server is not None:
            self.server.stop()
            self.server = None


@contextmanager
def schedule_server(run: RunFolder, port: int | None, pool: str) -> Iterator[ScheduleServer]:
    """A server that is starting; it and the worker are ended with the block.

    The environment is set for both, and for a client in this process.

    Raises:
        RunFolderBusy: another process serves this run's schedule.
        UserMistake: the port is taken.
    """
    folder = run.scheduler
    with clear_disk_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock("scopenote schedule --with-server"):
        end_orphan(folder)
        serving = ScheduleServer(folder, 0, pool)
        serving.port = _free_port(folder, port)
        _set_environment(folder, serving.url)
        with _told_to_end():
            try:
                serving.start_server()
                yield serving
            finally:
                serving.stop()


def _free_port(folder: RunFolder, wanted: int | None) -> int:
    """The one wanted, or the one of last time, or any; remembered."""
    import socket

    file = folder.path / "port"
    remembered = int(file.read_text()) if file.exists() else 0
    for port in [wanted] if wanted is not None else [remembered, 0]:
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                found = int(listener.getsockname()[1])
        except OSError as error:
            if wanted is None:
                continue
            raise UserMistake(
                "The port cannot be had.",
                where="`--port`",
                found=f"{wanted}: {error.strerror}",
                mend="name another, or leave it out",
            ) from error
        with clear_disk_errors(file):
            file.write_text(str(found))
        return found
    raise StoreError("There is no free port on this machine.")


def _set_environment(folder: RunFolder, url: str) -> None:
    home = folder.prefect_home.absolute()
    # How often a worker looks, and how loud it is, may be the user's to say; where is not.
    kept = ("PREFECT_WORKER_", "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_SERVICES_")
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        if not name.startswith(kept):
            del os.environ[name]
    os.environ |= {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_API_URL": url,
    }


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Ctrl-C and SIGTERM unwind the block; once more leaves at once, and both end after us."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remembered_url(run: Path) -> str | None:
    """The address of the server that `--with-server` runs for this run now, if it does."""
    from .prefect_home import living_server

    return living_server(RunFolder(run).scheduler)
