"""Nights that go wrong: flow, worker and server are killed at random; the labels come out right.

`python -m pytest -m long tests/test_chaos.py` takes some minutes for its twenty runs.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from .asking_runs import KEY, rows
from .fake_openai import Asked, FakeOpenAI, serve
from .pipeline_runs import tables
from .prefect_servers import ENDED, Server, answers, holder_of, wait_until
from .rating_runs import write_and_rate
from .small_runs import configure, write_corpus

N_RUNS = 20
CONCURRENCY = 8
POOL = "chaos"
VICTIMS = ("flow", "worker", "server")

pytestmark = pytest.mark.long


@dataclass
class Site:
    """A server with its database, a worker, and how each is begun again after it was killed."""

    home: Path
    listener: socket.socket
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> Server:
        url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/api"
        environment = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_PROFILES_PATH": str(self.home / "profiles.toml"),
            "PREFECT_UI_ENABLED": "false",
            "PREFECT_API_URL": url,
            "OPENAI_API_KEY": KEY,
        }
        return Server(url, environment, self.home)

    def begin_server(self) -> None:
        # Who calls while there is none only waits: the socket is this process's.
        number = self.listener.fileno()
        words = [sys.executable, "-m", "scopenote.flows.prefect_server", str(number)]
        self._begin("server", [*words, "tests", "lasting"], pass_fds=[number])
        wait_until(lambda: answers(self.server), "the server's answer")

    def begin_worker(self) -> None:
        words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
        self._begin("worker", [*words, "--limit", "2"])

    def _begin(self, name: str, words: list[str], **more: Any) -> None:
        with (self.home / f"log-{name}").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.home,
                env={
                    **os.environ,
                    **self.server.environment,
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                },
                **more,
            )

    def kill(self, victim: str, folder: Path) -> bool:
        """`kill -9`; and what is not the flow, which its next run begins, begins again."""
        if victim == "flow":
            process = holder_of(folder)
            if process is None:
                return False
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            return True
        self.processes[victim].kill()
        self.processes[victim].wait(30)
        {"server": self.begin_server, "worker": self.begin_worker}[victim]()
        return True

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site = Site(tmp_path_factory.mktemp("server"), listener)
        try:
            site.begin_server()
            yield site
        finally:
            site.end()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOpenAI]:
    def slowly(asked: Asked) -> Any:
        time.sleep(0.05)  # so that there is something under way to be killed
        return write_and_rate(replace(asked, times_before=0))  # the same for all runs

    with serve(slowly, keeps_requests=False) as fake:
        yield fake


@pytest.fixture(scope="module")
def undisturbed(
    site: Site, fake: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, int]:
    """The configuration, a run that nobody disturbed, and how many calls it took."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder, 300)  # two chunks
    config = configure(
        folder,
        fake,
        active=6,
        silent=10,
        collect="chunks_per_part = 1",
        chat=f"concurrency = {CONCURRENCY}",
    )
    finished = site.server.scopenote("run", config, "--out", folder / "undisturbed")
    assert finished.returncode == 0, finished.stderr
    return config, folder / "undisturbed", fake.n_asked


@pytest.mark.parametrize("seed", range(N_RUNS))
def test_a_run_killed_at_random_ends_in_the_tables_of_the_undisturbed_one(
    site: Site, fake: FakeOpenAI, undisturbed: tuple[Path, Path, int], seed: int
) -> None:
    config, whole, n_calls = undisturbed
    draw = random.Random(seed)
    folder, server = whole.parent / f"run-{seed}", site.server
    words = ["--cron", "0 0 1 1 *", "--pool", POOL, "--when-busy", "wait"]
    scheduled = server.scopenote("schedule", config, "--out", folder, *words)
    assert scheduled.returncode == 0, scheduled.stderr
    (ours,) = [
        each
        for each in server.ask("POST", "/deployments/filter")
        if each["parameters"]["run"] == str(folder)
    ]
    if "worker" not in site.processes:
        site.begin_worker()

    before, n_kills = fake.n_asked, 0
    killed: list[str] = []
    flow_run = server.run_now(ours["id"])
    for _ in range(draw.randint(1, 3)):
        begun = time.monotonic()
        # From when it is at work; how far it has got by then is chance.
        wait_until(
            lambda run=flow_run: holder_of(folder) or server.state(run)["type"] in ENDED, "a start"
        )
        wait = draw.uniform(0, 12)
        while time.monotonic() - begun < wait and holder_of(folder):
            time.sleep(0.05)
        victim = draw.choice(VICTIMS)
        was_killed = site.kill(victim, folder)
        n_kills += was_killed
        killed.append(f"{victim} after {time.monotonic() - begun:.1f} s: {was_killed}")
        if victim == "flow" or not holder_of(folder):
            flow_run = server.run_now(ours["id"])

    # Whatever became of those, the next one ends well.
    def last_ends() -> bool:
        with suppress(httpx.HTTPError):
            return server.state(last)["type"] in ENDED
        return False

    last = server.run_now(ours["id"])
    wait_until(last_ends, "the last run")
    state = server.state(last)
    log = (site.home / "log-worker").read_text(errors="replace")[-3000:]
    assert state["type"] == "COMPLETED", (killed, state["message"], log)
    assert tables(folder) == tables(whole), (killed, log)
    # No reply that was kept was asked for again, and only what a kill found under way was lost.
    assert rows(folder, "SELECT count(*) FROM repeated_calls") == [(0,)]
    assert rows(folder, "SELECT count(*) FROM calls") == [(n_calls,)]
    assert n_calls <= fake.n_asked - before <= n_calls + n_kills * CONCURRENCY
    with duckdb.connect(str(folder / "scopenote.duckdb"), read_only=True) as connection:
        running = connection.execute("SELECT count(*) FROM runs WHERE status = 'running'")
        assert running.fetchall() == [(0,)]
