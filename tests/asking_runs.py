"""Runs that ask a scripted model, as a user has them: a process, real HTTP, a real database."""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from .fake_openai import Answer, Asked, FakeOpenAI, reply

KEY = "sk-proj-a-key-that-must-stand-nowhere-0123456789"
PRICE = {"input": Decimal("0.15"), "cached_input": Decimal("0.075"), "output": Decimal("0.6")}
SITES = ("res", "mlp", "att")
HALF = Decimal("0.5")
DONE, FAILED, MISTAKE, WITH_FAILURES = 0, 1, 2, 3
LABELS = (
    "SELECT label_id, sae_id, feature, text, explanation, prompt_version, model, request_hash, "
    "draw, status, reason, n_dropped_contexts FROM labels WHERE explainer = 'highlighted' "
    "ORDER BY label_id"
)
ALL_CALLS = "(FROM calls UNION ALL BY NAME FROM repeated_calls)"


def collect(folder: Path) -> Path:
    """A run in which two thousand features and more have contexts."""
    rows = [
        json.dumps({"text": text})
        for module in (ast, inspect, logging, random, statistics, textwrap)
        for text in textwrap.wrap(inspect.getsource(module), 400, replace_whitespace=False)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(rows[:512]))
    (folder / "run.toml").write_text(configuration(folder))
    finished = command("collect", folder / "run", "--config", folder / "run.toml")
    assert finished.returncode == 0, finished.stderr
    return folder / "run"


def configuration(folder: Path, explain: str = "") -> str:
    saes = Path(str(importlib.resources.files("scopenote.extract.toy").joinpath("saes")))
    return f"""
        [model]
        name = "toy"
        [saes]
        paths = {json.dumps([str(next((saes / site).rglob("params.npz"))) for site in SITES])}
        [corpus]
        path = {json.dumps(str(folder / "corpus.jsonl"))}
        [collect]
        neighbours = false
        [alerts]
        failed_share = 1.0
        {explain}
        """


def asking_configuration(folder: Path, base_url: str, features: int, **chat: Any) -> str:
    """Of a run that asks this server about so many features."""
    settings = {"model": "gpt-4o-mini", "base_url": base_url, "concurrency": 64, **chat}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    explain = f'[explain]\nexplainers = ["highlighted"]\nfeatures = {features}\n'
    return configuration(folder, f"{explain}[explain.chat]\n{lines}")


def words_of(*words: str | Path) -> list[str]:
    """The command, with the tests' Prefect server where a test has asked for that."""
    runs_a_flow = words[0] in ("collect", "explain", "score", "run")
    own = ["--prefect-server"] if runs_a_flow and "PREFECT_API_URL" in os.environ else []
    return [sys.executable, "-m", "scopenote.flows.cli", *map(str, words), *own]


def command(
    *words: str | Path, key: str | None = None, timeout: float | None = 300
) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        words_of(*words), capture_output=True, text=True, timeout=timeout, env=environment(key)
    )
    # DuckDB's complaint about connections that somebody still held at the end.
    assert "leaked" not in finished.stderr, finished.stderr
    return finished


def environment(key: str | None) -> dict[str, str]:
    return dict(os.environ) | ({} if key is None else {"OPENAI_API_KEY": key})


def label_reply(asked: Asked) -> Answer:
    """A label that says which request it answers; what it costs follows from what was sent."""
    text = json.dumps(
        {
            "explanation": "They were made up.",
            "near_miss": "Nothing.",
            "label": f"words of {asked.conversation[:8]}",
        }
    )
    prompt = sum(len(each["content"]) for each in asked.body["messages"]) // 4
    return reply(text, prompt, prompt // 2, len(text) // 4)


def rows(run: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def assert_the_ledger_is_the_servers(
    run: Path, fake: FakeOpenAI, share: Decimal = Decimal(1)
) -> None:
    """Replies, tokens and, at this share of the prices, dollars."""
    ((n_replies, read, cached, written, usd),) = rows(
        run,
        "SELECT count(reply), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), "
        f"sum(usd) FROM {ALL_CALLS}",
    )
    assert n_replies == fake.counts["reply"]
    assert (read, cached, written) == tuple(
        fake.tokens[name] for name in ("prompt", "cached", "written")
    )
    uncached = fake.tokens["prompt"] - fake.tokens["cached"]
    millions = (
        uncached * PRICE["input"]
        + fake.tokens["cached"] * PRICE["cached_input"]
        + fake.tokens["written"] * PRICE["output"]
    )
    assert usd == millions * share / 10**6


def files_with_the_key(run: Path) -> list[Path]:
    """Among database, parts, journals, logs, Prefect's home and whatever else is there."""
    folders = [
        run,
        *([Path(os.environ["PREFECT_HOME"])] if "PREFECT_API_URL" in os.environ else []),
    ]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 5
    return [file for file in files if KEY.encode() in file.read_bytes()]


def runs_that_ask(collected: Path, folder: Path, **always: Any) -> Any:
    """Makes copies of a run that ask a server about so many features."""

    def make(fake: FakeOpenAI, features: int, name: str = "run", **chat: Any) -> tuple[Path, Path]:
        run = folder / name
        if not run.exists():
            shutil.copytree(collected, run)
        config = folder / f"{name}.toml"
        chat = {**always, **chat}
        config.write_text(asking_configuration(collected.parent, fake.base_url, features, **chat))
        return run, config

    return make


def explain(
    run: Path, *words: str | Path, expected: int | None = DONE
) -> subprocess.CompletedProcess[str]:
    finished = command("explain", run, *words, key=KEY)
    is_expected = finished.returncode in (
        (DONE, WITH_FAILURES) if expected is None else (expected,)
    )
    assert is_expected, finished.stdout + finished.stderr
    assert KEY not in finished.stdout + finished.stderr
    return finished


def n_labels(run: Path) -> int:
    query = f"SELECT count(text) FROM ({LABELS})"
    return int(rows(run, query)[0][0])
