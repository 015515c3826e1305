"""A real Prefect server on loopback with schedules, a real worker, and what is asked of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

BUSY = 503  # its SQLite is locked
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that somebody has, and how it is asked."""

    url: str
    environment: dict[str, str]
    logs: Path

    def ask(self, method: str, path: str, **json: Any) -> Any:
        """What it answers; while it is busy, or has just been killed, as patient as its clients."""
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = httpx.request(method, f"{self.url}{path}", json=json or None, timeout=120)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            else:
                if answer.status_code != BUSY or time.monotonic() > deadline:
                    answer.raise_for_status()
                    return answer.json() if answer.content else None
            time.sleep(0.5)

    def flow_runs(self, deployment_id: str, *types: str) -> list[dict[str, Any]]:
        """Those of a deployment, the first first; of these types of state, or of any."""
        runs = self.ask(
            "POST",
            "/flow_runs/filter",
            deployments={"id": {"any_": [deployment_id]}},
            sort="EXPECTED_START_TIME_ASC",
        )
        return [each for each in runs if not types or each["state"]["type"] in types]

    def state(self, flow_run_id: str) -> dict[str, Any]:
        return self.ask("GET", f"/flow_runs/{flow_run_id}")["state"]

    def run_now(self, deployment_id: str) -> str:
        """As the button on Prefect's page does."""
        path = f"/deployments/{deployment_id}/create_flow_run"
        return self.ask("POST", path, parameters={})["id"]

    def pause(self, deployment_id: str) -> None:
        self.ask("POST", f"/deployments/{deployment_id}/pause_deployment")

    def resume(self, deployment_id: str) -> None:
        """And plans at once, which the server would come to by itself."""
        self.ask("POST", f"/deployments/{deployment_id}/resume_deployment")
        self.ask("POST", f"/deployments/{deployment_id}/schedule", min_runs=3)

    def cancel(self, flow_run_id: str) -> None:
        """As the button on Prefect's page does."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.ask("POST", f"/flow_runs/{flow_run_id}/set_state", state=state)

    def wait_for_end(self, flow_run_id: str) -> dict[str, Any]:
        wait_until(lambda: self.state(flow_run_id)["type"] in ENDED, "the flow run's end")
        return self.state(flow_run_id)

    def subflows(self, flow_run_id: str) -> list[dict[str, Any]]:
        return self.ask(
            "POST", "/flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [flow_run_id]}}
        )

    def scopenote(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of ours, by someone whose server this is."""
        return subprocess.run(
            [sys.executable, "-m", "scopenote.flows.cli", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **self.environment},
        )

    @contextmanager
    def worker(self, pool: str) -> Iterator[subprocess.Popen[bytes]]:
        """Prefect's own, as a user starts it."""
        with (self.logs / f"worker-{pool}").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "prefect",
                    "worker",
                    "start",
                    "--pool",
                    pool,
                    "--limit",
                    "2",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_heed_interruption,
                env={**os.environ, **self.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            process.wait(60)

    def log_of(self, pool: str) -> str:
        return (self.logs / f"worker-{pool}").read_text(errors="replace")


def _heed_interruption() -> None:
    """A worker ends by interrupting itself, which it cannot where its parent ignores that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 400) -> Any:
    """What the condition gives as soon as it is true of something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds:.0f} s for {what}")


@contextmanager
def lasting_server(home: Path) -> Iterator[Server]:
    """As `prefect server start` gives one, without pages."""
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_UI_ENABLED": "false",
    }
    with socket.create_server(("127.0.0.1", 0)) as listener, (home / "log").open("wb") as log:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        environment["PREFECT_API_URL"] = url
        module = [sys.executable, "-m", "scopenote.flows.prefect_server", str(listener.fileno())]
        process = subprocess.Popen(
            [*module, "tests", "lasting"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            env={**os.environ, **environment},
            cwd=home,
        )
    try:
        server = Server(url, environment, home)
        wait_until(lambda: answers(server), "the server's answer")
        yield server
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def answers(server: Server) -> bool:
    with suppress(httpx.HTTPError):
        return bool(server.ask("GET", "/health"))
    return False


def holder_of(folder: Path) -> int | None:
    """The process that works on a run's folder."""
    import json

    with suppress(OSError, ValueError):
        return int(json.loads((folder / "run.lock").read_bytes())["pid"])
    return None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
