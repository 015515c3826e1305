"""Scheduled runs on a real Prefect server, begun by a real worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.store.run_folder import RunFolder

from .pipeline_runs import docstrings, processes_in, write_configuration
from .prefect_servers import Server, holder_of, kill, lasting_server, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with lasting_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_configuration(tmp_path)


def schedule(server: Server, *words: str | Path) -> dict[str, Any]:
    """Gives the command, which has to do its work; the deployment as the server has it."""
    done = server.scopenote("schedule", *words)
    assert done.returncode == 0, done.stderr
    return deployment(server, Path(words[words.index("--out") + 1]))


def deployment(server: Server, run: Path) -> dict[str, Any]:
    found = server.ask("POST", "/deployments/filter")
    (ours,) = [each for each in found if each["parameters"]["run"] == str(run)]
    return ours


def runs(folder: Path) -> list[dict[str, Any]]:
    """The run's own record, the latest first."""
    with duckdb.connect(str(folder / "scopenote.duckdb"), read_only=True) as connection:
        rows = connection.execute(
            "SELECT status, summary, flow_run_id FROM runs ORDER BY started_at DESC"
        ).fetchall()
    return [
        {"status": status, "stages": json.loads(summary or "{}").get("stages"), "flow_run": each}
        for status, summary, each in rows
    ]


def done_by(run: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What each stage did now, and what was there before."""
    return {each["stage"]: (each["done"], each["already_done"]) for each in run["stages"]}


def count(folder: Path, what: str) -> int:
    with duckdb.connect(str(folder / "scopenote.duckdb"), read_only=True) as connection:
        return connection.execute(f"SELECT count(*) FROM {what}").fetchall()[0][0]


@pytest.mark.slow
def test_a_run_begins_by_itself_and_the_next_one_does_only_what_is_new(
    server: Server, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    here = ["--out", folder, "--pool", "nightly"]
    ours = schedule(server, config, *here, "--every", "10s")
    with server.worker("nightly"):
        first = wait_until(
            lambda: server.flow_runs(ours["id"], "RUNNING", "COMPLETED"), "the first run"
        )[0]
        schedule(server, config, *here[:2], "--pause")
        state = server.wait_for_end(first["id"])
        assert state["type"] == "COMPLETED", state["message"]
        labels = count(folder, "labels WHERE status = 'ok'")
        assert labels > 900, server.log_of("nightly")
        assert "explain: " in state["message"]
        (record,) = runs(folder)
        assert (record["status"], record["flow_run"]) == ("done", first["id"])

        read_before, _ = done_by(record)["collect"]
        with (config.parent / "corpus.jsonl").open("a") as corpus:
            for text in list(docstrings())[560:860]:
                corpus.write("\n" + json.dumps({"text": text}))
        began_before = {each["id"] for each in server.flow_runs(ours["id"])}
        schedule(server, config, *here[:2], "--resume")
        second = wait_until(
            lambda: [
                each
                for each in server.flow_runs(ours["id"], "RUNNING", "COMPLETED")
                if each["id"] not in began_before
            ],
            "the second run",
        )[0]
        schedule(server, config, *here[:2], "--pause")
        state = server.wait_for_end(second["id"])
        assert state["type"] == "COMPLETED", state["message"]
    record = next(each for each in runs(folder) if each["flow_run"] == second["id"])
    read, there = done_by(record)["collect"]
    assert there >= read_before > read > 0
