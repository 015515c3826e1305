"""How a run is stopped: by a signal, by a second one, and with threads at work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A command whose flow is given as code, without Prefect, which takes seconds to import.
WITH_A_FLOW = """
import contextlib, sys, types
home = types.ModuleType("scopenote.flows.prefect_home")
home.isolate_prefect = lambda folder, use_own_server: None
home.without_heartbeats = contextlib.nullcontext
flow = types.ModuleType("scopenote.flows.label_corpus")
exec(sys.argv.pop(1), flow.__dict__)
sys.modules.update({home.__name__: home, flow.__name__: flow})
from scopenote.flows.cli import main
main()
"""
UNWINDS = """
import time
def label_corpus(config, folder, progress, allow_mismatch, budget_usd):
    try:
        progress.say("at work")
        time.sleep(60)
    finally:
        progress.say("unwound")
"""
CLINGS = """
import time
def label_corpus(config, folder, progress, allow_mismatch, budget_usd):
    news = "at work"
    while True:
        try:
            progress.say(news)
            time.sleep(60)
        except KeyboardInterrupt:
            news = "not yet"
"""


def stopped(tmp_path: Path, flow: str, *signals: signal.Signals) -> tuple[int, str, float]:
    command = [sys.executable, "-c", WITH_A_FLOW, flow, "demo", "--out", "my run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "at work\n"
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors, time.monotonic() - began


STOPPED = (
    "Stopped. Everything finished so far is kept.\n  to go on: scopenote demo --out 'my run'\n"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_unwinds_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    status, errors, seconds = stopped(tmp_path, UNWINDS, number)
    assert (status, errors) == (1, "unwound\n" + STOPPED)
    assert seconds < 4


def test_a_second_signal_ends_a_run_that_does_not_unwind(tmp_path: Path) -> None:
    status, errors, seconds = stopped(tmp_path, CLINGS, signal.SIGINT, signal.SIGINT)
    assert (status, errors) == (1, "not yet\n" + STOPPED)
    assert seconds < 4


def test_a_run_that_does_not_unwind_ends_by_itself(tmp_path: Path) -> None:
    flow = "import scopenote.flows.working as working; working._STOP_SECONDS = 0.5\n" + CLINGS
    status, errors, _ = stopped(tmp_path, flow, signal.SIGTERM)
    assert (status, errors) == (1, "not yet\n" + STOPPED)


REAL_FLOW = """
import sys, time, types
module = types.ModuleType("scopenote.flows.label_corpus")
def label_corpus(config, folder, progress, allow_mismatch, budget_usd):
    from prefect import flow, task
    @task
    def wait(n):
        progress.say("at work")
        time.sleep(60)
    @flow
    def work():
        return [future.result() for future in wait.map(range(1))]
    return work()
module.label_corpus = label_corpus
sys.modules[module.__name__] = module
from scopenote.flows.cli import main
main()
"""


@pytest.mark.slow
def test_a_prefect_flow_with_busy_threads_is_stopped_within_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REAL_FLOW, "demo"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "at work\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, STOPPED.replace(" --out 'my run'", " --out demo"))
    assert time.monotonic() - began < 12
    assert not (tmp_path / "demo" / "prefect" / "server.json").exists()
