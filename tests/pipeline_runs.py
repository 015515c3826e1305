"""Runs of the whole job as a user starts them: processes, real files, and what is in them."""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import duckdb

TABLES = {
    "saes": "*",
    "features": "*",
    "feature_splits": "*",
    "neighbours": "*",
    "windows": "*",
    "contexts": "*",
    "background": "*",
    "pieces": "*",
    "labels": "* EXCLUDE (created_at, run_id)",
    "label_contexts": "*",
    "scores": "* EXCLUDE (run_id)",
    "simulations": "*",
    "chunks": "* EXCLUDE (part_id)",
}


def docstrings() -> Iterator[str]:
    """Real text in plenty: what the standard library says of itself."""
    for module in _modules():
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                text = ast.unparse(node)
                yield from textwrap.wrap(text, 400, replace_whitespace=False)


def _modules() -> list[ModuleType]:
    import argparse
    import asyncio.base_events
    import collections
    import email.message
    import http.client
    import logging
    import statistics

    return [
        argparse, asyncio.base_events, collections, email.message, http.client, logging, statistics,
    ]  # fmt: skip


def write_configuration(folder: Path) -> Path:
    """A corpus with two rows that cannot be used, one SAE of the toy, and all else as it comes."""
    texts = [text for text, _ in zip(docstrings(), range(560), strict=False)]
    rows = [json.dumps({"text": text}) for text in texts]
    rows.insert(100, "this line is not JSON")
    rows.insert(200, json.dumps({"text": " "}))
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    config = folder / "small.toml"
    saes = Path(str(importlib.resources.files("scopenote.extract.toy").joinpath("saes")))
    # The demo takes all three; one is enough for what is asked here, in a third of the time.
    paths = json.dumps([str(next((saes / "res").rglob("params.npz")))])
    config.write_text(
        f"""
        [model]
        name = "toy"
        [saes]
        paths = {paths}
        [corpus]
        path = "corpus.jsonl"
        [collect]
        chunks_per_part = 1
        [score]
        resamples = 100
        """
    )
    return config


def command(*words: str | Path) -> list[str]:
    """The words, with the tests' Prefect server where a test has asked for that."""
    own = ["--prefect-server"] if "PREFECT_API_URL" in os.environ else []
    return [sys.executable, "-m", "scopenote.flows.cli", *map(str, words), *own]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300)


def processes_in(folder: Path) -> list[str]:
    """Command lines of living processes that stand in this folder or name it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in words or str(folder) in os.readlink(process / "cwd"):
                found.append(words)
        except OSError:
            continue
    return found


def tables(folder: Path) -> dict[str, tuple[int, int]]:
    """Each table's number of rows and the sum of their hashes, whatever their order."""
    with duckdb.connect(str(folder / "scopenote.duckdb"), read_only=True) as connection:
        return {
            table: connection.execute(
                f"SELECT count(*), sum(hash(row)) FROM (SELECT {columns} FROM {table}) row"
            ).fetchall()[0]
            for table, columns in TABLES.items()
        }


def wait_for_work(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until this process has recorded its run: the first moment worth killing at."""

    def changed() -> int:
        times = [0]
        for file in folder.glob("work.duckdb*"):
            with suppress(FileNotFoundError):  # the write-ahead log comes and goes
                times.append(file.stat().st_mtime_ns)
        return max(times)

    before = changed()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if changed() != before:
            return
        time.sleep(0.02)


def collect_three_shards(folder: Path, config: Path) -> None:
    """At once, each by a process of its own."""
    shards = [
        subprocess.Popen(
            command("collect", folder, "--config", config, "--shard", f"{n}/3"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2, 3)
    ]
    for shard in shards:
        _, said = shard.communicate(timeout=300)
        assert shard.returncode == 0, said
