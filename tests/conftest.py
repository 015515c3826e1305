"""For every test: no network but this machine's own, and nothing of the user's environment."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

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
settings.register_profile("scopenote", deadline=None)
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
