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
    config = write_configuration(tmp_path)
    # Half of that text is enough here: two chunks of 256 documents, the second one small.
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(corpus.read_text().splitlines()[:300]))
    return config


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


@pytest.mark.long
def test_a_run_begins_by_itself_and_the_next_one_does_only_what_is_new(
    server: Server, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ours = schedule(server, config, "--out", folder, "--pool", "nightly", "--every", "15s")
    with server.worker("nightly"):
        first = wait_until(
            lambda: server.flow_runs(ours["id"], "RUNNING", "COMPLETED"), "the first run"
        )[0]
        server.pause(ours["id"])
        state = server.wait_for_end(first["id"])
        assert state["type"] == "COMPLETED", state["message"]
        assert count(folder, "labels WHERE text IS NOT NULL") > 900, server.log_of("nightly")
        assert "explain: " in state["message"]
        (record,) = runs(folder)
        assert (record["status"], record["flow_run"]) == ("done", first["id"])

        read_before, _ = done_by(record)["collect"]
        with (config.parent / "corpus.jsonl").open("a") as corpus:
            for text in list(docstrings())[560:640]:
                corpus.write("\n" + json.dumps({"text": text}))
        began_before = {each["id"] for each in server.flow_runs(ours["id"])}
        server.resume(ours["id"])
        second = wait_until(
            lambda: [
                each
                for each in server.flow_runs(ours["id"], "RUNNING", "COMPLETED")
                if each["id"] not in began_before
            ],
            "the second run",
        )[0]
        server.pause(ours["id"])
        state = server.wait_for_end(second["id"])
        assert state["type"] == "COMPLETED", state["message"]
    record = next(each for each in runs(folder) if each["flow_run"] == second["id"])
    read, there = done_by(record)["collect"]
    assert there >= read_before > read > 0


@pytest.fixture
def by_hand(server: Server, config: Path, tmp_path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """A deployment that fires tomorrow and now when a test says so, with a worker; its folder."""
    folder = tmp_path / "run"
    pool = tmp_path.name
    ours = schedule(server, config, "--out", folder, "--pool", pool, "--every", "1d")
    with server.worker(pool):
        yield ours, folder


def wait_for_collecting(server: Server, flow_run_id: str, folder: Path) -> int:
    """Until the run is at work on its text; the process."""
    wait_until(
        lambda: server.state(flow_run_id)["type"] == "RUNNING" and server.subflows(flow_run_id),
        "a run at work",
    )
    wait_until(lambda: any((folder / "parts").rglob("*.parquet")), "a first part")
    return wait_until(lambda: holder_of(folder), "the lock")


@pytest.mark.long
def test_a_run_cancelled_on_prefects_page_ends_within_seconds_and_the_next_goes_on(
    server: Server, by_hand: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    ours, folder = by_hand
    flow_run = server.run_now(ours["id"])
    process = wait_for_collecting(server, flow_run, folder)
    parts = {file.name for file in (folder / "parts").rglob("*.parquet")}
    began = time.monotonic()
    server.cancel(flow_run)
    wait_until(lambda: not Path(f"/proc/{process}").exists(), "the end of the process", 30)
    gone = time.monotonic() - began
    state = server.wait_for_end(flow_run)
    in_time = time.monotonic() - began
    assert (state["type"], state["name"]) == ("CANCELLED", "Cancelled"), state["message"]
    # Prefect would kill it after 30 s.
    assert gone < 20 and in_time < 25, (gone, in_time)
    assert parts <= {file.name for file in (folder / "parts").rglob("*.parquet")}
    following = server.run_now(ours["id"])
    assert server.wait_for_end(following)["type"] == "COMPLETED"
    # What was collected is not collected again.
    reported, _ = done_by(runs(folder)[0])["collect"]
    last_stage = re.findall(r"collect: ([\d,]+) tokens in", server.log_of(tmp_path.name))[-1]
    assert int(last_stage.replace(",", "")) < reported
    # What belonged to the cancelled run is not left running either.
    for each in server.subflows(flow_run):
        assert each["state"]["type"] in {"CANCELLED", "CRASHED", "FAILED"}


@pytest.mark.long
def test_worker_and_flow_killed_block_no_later_run_and_prefect_is_told(
    server: Server, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ours = schedule(server, config, "--out", folder, "--pool", "killed", "--every", "1d")
    with server.worker("killed") as worker:
        flow_run = server.run_now(ours["id"])
        process = wait_for_collecting(server, flow_run, folder)
        os.killpg(worker.pid, signal.SIGKILL)
        kill(process)
        worker.wait(30)
    assert server.state(flow_run)["type"] == "RUNNING"
    following = server.run_now(ours["id"])
    with server.worker("killed"):
        assert server.wait_for_end(following)["type"] == "COMPLETED"
    state = server.state(flow_run)
    assert state["type"] == "CRASHED"
    assert "process died" in state["message"]
    assert {each["state"]["type"] for each in server.subflows(flow_run)} <= {"CRASHED", "COMPLETED"}
    assert [each["status"] for each in runs(folder)] == ["done", "interrupted"]
    assert "had died with its process" in server.log_of("killed")


@pytest.mark.long
@pytest.mark.parametrize("when_busy", ["skip", "wait"])
def test_a_run_that_finds_its_folder_taken_skips_or_waits(
    server: Server, config: Path, tmp_path: Path, when_busy: str
) -> None:
    folder = tmp_path / "run"
    pool = f"busy-{when_busy}"
    options = ["--every", "1d", "--when-busy", when_busy]
    ours = schedule(server, config, "--out", folder, "--pool", pool, *options)
    with server.worker(pool):
        with RunFolder(folder).create().lock("a test"):
            flow_run = server.run_now(ours["id"])
            if when_busy == "skip":
                state = server.wait_for_end(flow_run)
                assert (state["type"], state["name"]) == ("COMPLETED", "Skipped")
                assert f"process {os.getpid()}, `a test`" in state["message"]
                return
            wait_until(lambda: "waiting for process" in server.log_of(pool), "that it waits")
            assert server.state(flow_run)["type"] == "RUNNING"
        assert server.wait_for_end(flow_run)["type"] == "COMPLETED"
    assert server.log_of(pool).count("waiting for process") == 1
    assert runs(folder)[0]["status"] == "done"


@pytest.mark.long
def test_what_a_person_can_mend_fails_the_run_with_that_message(
    server: Server, by_hand: tuple[dict[str, Any], Path], config: Path
) -> None:
    ours, _ = by_hand
    config.write_text(config.read_text().replace("resamples", "resample"))
    state = server.wait_for_end(server.run_now(ours["id"]))
    assert (state["type"], state["name"]) == ("FAILED", "Failed")
    assert "perhaps `resamples` was meant" in state["message"]
    log = server.log_of(config.parent.name)
    assert "Error: The configuration has a key that does not exist." in log


@pytest.mark.long
def test_with_server_one_command_is_server_and_worker_and_leaves_nothing_behind(
    config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "scopenote.flows.cli", "schedule", str(config)]
    command += ["--out", str(tmp_path / "run"), "--with-server"]
    environment = {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    said = tmp_path / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--every", "10s"], stdout=log, stderr=log, env=environment
        )
    try:
        page = wait_until(lambda: re.search(r"Pages: (\S+)", said.read_text()), "the page")[1]
        server = Server(f"{page}/api", {}, tmp_path)
        run = RunFolder(tmp_path / "run")
        for option, shown in (("--list", "every 10s"), ("--pause", "paused"), ("--resume", "next")):
            words = [config] if option != "--list" else []
            answer = server.scopenote("schedule", *words, option, "--out", run.path)
            assert shown in answer.stdout, answer.stderr
        # What dies is started again, and the schedule goes on.
        wait_for_collecting(server, first_run(server, run.path), run.path)
        kill(json.loads((run.scheduler.prefect_home / "server.json").read_bytes())["pid"])
        wait_until(lambda: "The Prefect server has died" in said.read_text(), "that it is missed")
        wait_until(lambda: run.database.exists() and ended_well(run.path), "a run to its end")
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0, said.read_text()
    assert "Stopped." in said.read_text()
    assert wait_until(lambda: not processes_in(tmp_path), "an end of all", 30)
    # Again, on the same port, with the schedule that is there.
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        assert wait_until(lambda: re.search(r"Pages: (\S+)", said.read_text()), "it")[1] == page
        assert "every 10s" in said.read_text()
        process.kill()
        process.wait(30)
        assert wait_until(lambda: not processes_in(tmp_path), "an end of all", 60)
    finally:
        process.kill()


def first_run(server: Server, run: Path) -> str:
    ours = deployment(server, run)
    return wait_until(lambda: server.flow_runs(ours["id"], "RUNNING"), "a run")[0]["id"]


def ended_well(folder: Path) -> bool:
    return any(each["status"] == "done" for each in runs(folder))


@pytest.mark.long
def test_what_was_due_while_no_worker_ran_is_done_by_one_run(
    server: Server, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ours = schedule(server, config, "--out", folder, "--pool", "missed", "--every", "5s")
    wait_until(lambda: len(due(server, ours)) >= 5, "some that are due")
    with server.worker("missed"):
        wait_until(lambda: server.flow_runs(ours["id"], "RUNNING"), "the first")
        wait_until(lambda: "more that were due are done" in server.log_of("missed"), "the others")
        server.pause(ours["id"])
        wait_until(lambda: not server.flow_runs(ours["id"], "RUNNING", "PENDING"), "the end")
    ended = server.flow_runs(ours["id"], "COMPLETED")
    named = {each["state"]["name"] for each in ended}
    assert named == {"Completed", "Skipped"}
    # Skipped without a process.
    assert any(each["run_count"] == 0 for each in ended)


def due(server: Server, ours: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in server.flow_runs(ours["id"]) if each["state"]["name"] == "Late"]


@pytest.mark.long
def test_prefects_own_commands_deploy_what_prefect_yaml_says(
    server: Server, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        **server.environment,
        "SCOPENOTE_CONFIG": "/nowhere/gemma.toml",
        "SCOPENOTE_RUN": str(tmp_path / "run"),
    }
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    root = Path(__file__).parents[1]
    for words in (
        ["work-pool", "create", "scopenote", "--type", "process"],
        ["deploy", "--all"],
    ):
        done = subprocess.run(
            [*prefect, *words], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    ours = deployment(server, tmp_path / "run")
    assert ours["entrypoint"] == "scopenote.flows.scheduled_run.scheduled_run"
    assert ours["parameters"]["budget_usd"] is None
    assert ours["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    with server.worker("scopenote"):
        state = server.wait_for_end(server.run_now(ours["id"]))
    # It was found, loaded and begun, and said what is wrong with its parameters.
    assert "There is no such configuration file." in state["message"]
