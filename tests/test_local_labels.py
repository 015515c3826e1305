"""Labels from a model in this process, from the command line to the database.

The toy itself writes them. It never learnt to answer, so every label is a stored failure with its
reason: that is what is looked at here.
"""

from __future__ import annotations

import importlib.resources
import inspect
import json
import random
import statistics
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.label.explainers import NEVER_ACTIVE

pytestmark = pytest.mark.slow

TOY = Path(str(importlib.resources.files("scopenote.extract.toy")))
N_FEATURES = 12


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "scopenote.flows.cli", *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, timeout=300)


def write_configuration(folder: Path, **chat: Any) -> Path:
    rows = [
        json.dumps({"text": text})
        for module in (random, statistics)
        for text in textwrap.wrap(inspect.getsource(module), 400, replace_whitespace=False)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in chat.items())
    file = folder / "job.toml"
    file.write_text(
        f"""
        [model]
        name = "toy"
        [saes]
        paths = [{json.dumps(str(next((TOY / "saes" / "res").rglob("params.npz"))))}]
        [corpus]
        path = "corpus.jsonl"
        [collect]
        neighbours = false
        [explain]
        explainers = ["token_lookup", "highlighted"]
        features = {N_FEATURES}
        [explain.chat]
        local = true
        {settings}
        """
    )
    return file


def rows(run: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_a_local_models_labels_and_calls_are_on_record_and_cost_nothing(tmp_path: Path) -> None:
    file = write_configuration(
        tmp_path, model=str(TOY / "toy-gemma-2"), max_reply_tokens=40, concurrency=4
    )
    run = tmp_path / "run"
    # A budget of nothing: only what is known to be free may be asked.
    finished = command("run", file, "--out", run, "--budget-usd", "0")
    assert finished.returncode == 3, finished.stderr
    labels = rows(run, "SELECT status, reason, text FROM labels WHERE explainer = 'highlighted'")
    asked = [reason for _, reason, _ in labels if reason != NEVER_ACTIVE]
    assert len(labels) == N_FEATURES
    assert asked
    assert all(status == "failed" and reason and text is None for status, reason, text in labels)

    calls = rows(
        run,
        "SELECT usd, error, prompt_tokens, cached_tokens, completion_tokens, reply FROM calls",
    )
    assert len(calls) >= len(asked)
    assert {usd for usd, *_ in calls} == {Decimal(0)}
    answered = [call for call in calls if call[1] is None]
    assert answered, "some prompts fit into the toy's context"
    assert all(0 < prompt <= 2048 - 40 for _, _, prompt, *_ in answered)
    assert all(written <= 40 for *_, written, _ in answered)
    # All begin with the same instructions, which were read once.
    cached = [n for _, _, _, n, *_ in answered]
    assert sorted(set(cached)) == [0, max(cached)]
    assert cached.count(0) <= 1
    assert all(error.startswith("context_too_long") for _, error, *_ in calls if error)

    status = json.loads(command("status", run, "--json").stdout)
    assert Decimal(status["spent"][0]["usd"]) == 0
    assert status["spent"][0]["n_unpriced"] == 0
    # Nothing is left to be asked, and nothing is asked again.
    again = command("explain", run)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr


def test_a_model_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    file = write_configuration(tmp_path, model="./no-such-model")
    run = tmp_path / "run"
    finished = command("run", file, "--out", run)
    assert finished.returncode == 2, finished.stderr
    assert "The model that is to write labels cannot be loaded." in finished.stderr
    assert str(tmp_path / "no-such-model") in finished.stderr
    assert "Traceback" not in finished.stderr
    # What needs no model is done, and the rest can be had later.
    assert rows(run, "SELECT count(*) > 0 FROM features") == [(True,)]
