"""For every test: no network but this machine's own, and nothing of the user's environment."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from .asking_runs import collect

# This process and those it starts; read by the libraries when they are imported.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
# A test must neither spend the user's money nor report to the user's server.
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "PREFECT_API_URL", "PREFECT_API_KEY"):
    os.environ.pop(name, None)

# How long one example takes says nothing on a machine that has other work.
settings.register_profile("scopenote", deadline=None, max_examples=50)
settings.load_profile("scopenote")


@pytest.fixture(autouse=True, scope="session")
def _only_this_machine() -> Iterator[None]:
    """Fails whatever test connects to another machine from this process."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            pytest.fail(f"a test tried to reach {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def _shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("prefect")
    environment = {"PREFECT_HOME": str(home)}
    with socket.create_server(("127.0.0.1", 0)) as listener, (home / "log").open("wb") as log:
        server = [sys.executable, "-m", "scopenote.flows.prefect_server", str(listener.fileno())]
        process = subprocess.Popen(
            [*server, "tests"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            env={**os.environ, **environment},
            cwd=home,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    yield {**environment, "PREFECT_API_URL": url}
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


@pytest.fixture(scope="module")
def prefect_server(_shared_server: dict[str, str]) -> Iterator[None]:
    """Commands given `--prefect-server` find one, as a user may have it, and start none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _shared_server.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with contexts of some two thousand features, to be copied."""
    return collect(tmp_path_factory.mktemp("collected"))
