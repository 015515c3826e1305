"""The command for the dashboard: where it listens, who may ask, and what stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import httpx
import pytest

from .dashboards import make_run

COMMAND = [sys.executable, "-m", "scopenote.flows.cli", "serve"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("served") / "run")


@contextmanager
def serving(run: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    process = subprocess.Popen(
        [*COMMAND, str(run), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate(timeout=20)


def refused(*words: str | Path) -> str:
    finished = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True)
    assert finished.returncode in (1, 2)
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    return finished.stderr


def test_it_prints_its_address_answers_there_and_ends_with_ctrl_c(run: Path) -> None:
    with serving(run) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        assert httpx.get(f"{address}features").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0


def test_another_address_asks_for_a_token_which_is_printed(run: Path) -> None:
    with serving(run, "--host", "0.0.0.0") as (address, _):
        shown, _, token = address.partition("?token=")
        assert len(token) >= 24
        home = f"http://127.0.0.1:{httpx.URL(shown).port}/"
        assert httpx.get(f"{home}features").status_code == 401
        with httpx.Client(follow_redirects=True) as browser:
            assert browser.get(f"{home}features?token={token}").status_code == 200
            assert browser.get(f"{home}api/queues").status_code == 200


def test_the_token_may_be_ones_own(run: Path) -> None:
    own = {"SCOPENOTE_TOKEN": "my own token of some length"}
    with serving(run, "--host", "0.0.0.0", **own) as (address, _):
        home = f"http://127.0.0.1:{httpx.URL(address.partition('?')[0]).port}/"
        headers = {"authorization": f"Bearer {own['SCOPENOTE_TOKEN']}"}
        assert httpx.get(f"{home}api/queues", headers=headers).status_code == 200


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_said(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refused(run, "--port", port)
    assert f"127.0.0.1, port {port}" in message and "--port" in message
    assert "--host" in refused(run, "--host", "192.0.2.1")


def test_a_run_that_is_not_there_or_newer_is_said_before_it_listens(tmp_path: Path) -> None:
    assert "none" in refused(tmp_path / "none")
    newer = make_run(tmp_path / "newer")
    with duckdb.connect(str(newer / "scopenote.duckdb")) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    assert "newer version of Scopenote" in refused(newer)
