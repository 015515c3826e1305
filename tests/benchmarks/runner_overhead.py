"""What it costs to have tasks work on Dask instead of in threads of one process.

First tasks that do nothing, in a flow: how many a second. Then a small run of the toy: text
collected once, and the same run explained and scored from there on both runners, each as the
command that a user gives, with what the command itself takes to begin. Workers are on this
machine, as many as processors.

    python tests/benchmarks/runner_overhead.py [--tasks N] [--documents N] [--rounds N]
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from scopenote.flows.runner_settings import RunnerKind, RunnerSection
from scopenote.flows.working import working
from scopenote.store.run_folder import RunFolder

RUNNERS: tuple[RunnerKind, ...] = ("thread", "dask")


def write_corpus(folder: Path, n_documents: int) -> Path:
    """Documents of 400 characters: source of the standard library."""
    texts = [
        text
        for module in (ast, inspect, argparse, subprocess, tempfile, statistics, textwrap)
        for text in textwrap.wrap(inspect.getsource(module), 400, replace_whitespace=False)
    ]
    rows = [json.dumps({"text": text}) for text in texts[:n_documents]]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    config = folder / "small.toml"
    config.write_text(
        '[model]\nname = "toy"\n[corpus]\npath = "corpus.jsonl"\n[collect]\nneighbours = false\n'
    )
    return config


def scopenote(*words: str | Path) -> float:
    """Runs a command and gives its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "scopenote.flows.cli", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def measure_tasks(folder: RunFolder, n_tasks: int) -> dict[RunnerKind, tuple[float, float]]:
    """Seconds until tasks can begin, and tasks a second."""
    found = {}
    with working(folder, "benchmark", [], use_own_server=False):
        from prefect import flow
        from scopenote.flows.runners import Runner, task_runner
        from scopenote.flows.task_policy import retried_task

        @retried_task("nothing")
        def nothing(runner: Runner) -> int:
            return runner.call(os.getpid)

        @flow
        def many(kind: str) -> tuple[float, float]:
            started = time.monotonic()
            settings = RunnerSection.model_validate({"kind": kind})
            with task_runner(settings, folder) as runner:
                runner.submit(nothing).result()
                begun = time.monotonic()
                for future in [runner.submit(nothing) for _ in range(n_tasks)]:
                    future.result()
                return begun - started, n_tasks / (time.monotonic() - begun)

        for kind in RUNNERS:
            found[kind] = many(kind)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tasks", type=int, default=300)
    arguments.add_argument("--documents", type=int, default=300)
    arguments.add_argument("--rounds", type=int, default=1)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_corpus(folder, given.documents)
        scopenote("collect", folder / "run", "--config", config)
        seconds: dict[str, list[float]] = {}
        for number in range(given.rounds):
            for runner in RUNNERS:
                copy = folder / f"{runner}-{number}"
                shutil.copytree(folder / "run", copy)
                for stage in ("explain", "score"):
                    taken = scopenote(stage, copy, "--runner", runner)
                    seconds.setdefault(f"{runner} {stage}", []).append(taken)
        tasks = measure_tasks(RunFolder(folder / "run"), given.tasks)
    lines = [
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        "| runner | to begin | empty tasks a second | `explain` | `score` |",
        "|---|---|---|---|---|",
    ]
    for runner in RUNNERS:
        begin, rate = tasks[runner]
        stages = (
            f"{statistics.median(seconds[f'{runner} {stage}']):.0f} s"
            for stage in ("explain", "score")
        )
        lines.append(f"| {runner} | {begin:.1f} s | {rate:.0f} | {' | '.join(stages)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
