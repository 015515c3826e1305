"""Labels from a model in this process, from the command line to the database.

The toy itself writes them. It never learnt to answer, so every label is a stored failure with its
reason: that is what is looked at here.
"""

from __future__ import annotations

import importlib.resources
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from .asking_runs import command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

TOY = importlib.resources.files("scopenote.extract.toy")
MODEL = str(TOY.joinpath("toy-gemma-2"))
(SAE,) = Path(str(TOY.joinpath("saes"))).glob("res/**/params.npz")
N_FEATURES = 12


def write_configuration(folder: Path, **chat: Any) -> Path:
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in chat.items())
    file = folder / "job.toml"
    file.write_text(
        f"""
        [model]
        name = "toy"
        [saes]
        paths = [{json.dumps(str(SAE))}]
        [corpus]
        path = "corpus.txt"
        [collect]
        neighbours = false
        [explain]
        explainers = ["token_lookup", "output"]
        features = {N_FEATURES}
        [explain.chat]
        local = true
        {settings}
        """
    )
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which nothing is labelled."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "corpus.txt").write_text(Path(random.__file__).read_text())
    finished = command(
        "collect", folder / "run", "--config", write_configuration(folder, model="m")
    )
    assert finished.returncode == 0, finished.stderr
    return folder / "run"


def rows(run: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_a_model_that_is_not_there_is_the_users_mistake(run: Path) -> None:
    file = write_configuration(run.parent, model="./no-such-model")
    finished = command("explain", run, "--config", file)
    assert finished.returncode == 2, finished.stderr
    assert "The model that is to write labels cannot be loaded." in finished.stderr
    assert str(run.parent / "no-such-model") in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.long
def test_a_local_models_labels_and_calls_are_on_record_and_cost_nothing(run: Path) -> None:
    file = write_configuration(run.parent, model=MODEL, max_reply_tokens=40, concurrency=4)
    # A budget of nothing: only what is known to be free may be asked.
    finished = command("explain", run, "--config", file, "--budget-usd", "0")
    assert finished.returncode == 4, finished.stderr  # none of them is a label
    labels = rows(run, "SELECT status, reason, text FROM labels WHERE explainer = 'output'")
    assert len(labels) == N_FEATURES
    assert all(status == "failed" and reason and text is None for status, reason, text in labels)

    # A reply that cannot be used is asked to be repaired, once.
    calls = rows(
        run,
        "SELECT prompt_tokens, cached_tokens, completion_tokens, usd, reply, error FROM calls",
    )
    assert N_FEATURES < len(calls) <= 2 * N_FEATURES
    for prompt, cached, written, usd, reply, error in calls:
        assert usd == 0
        assert usd is not None
        assert error is None
        assert reply is not None
        assert 0 < prompt <= 2048 - 40
        assert 0 <= cached < prompt
        assert 0 <= written <= 40
    # All begin with the same instructions, which were read once.
    cached_tokens = sorted(cached for _, cached, *_ in calls)
    assert cached_tokens[0] == 0
    assert cached_tokens[1] == cached_tokens[-1] > 1000

    status = json.loads(command("status", run, "--json").stdout)
    (spent,) = status["spent"]
    assert (Decimal(spent["usd"]), spent["n_unpriced"]) == (0, 0)
    # Nothing is left to be asked, and nothing is asked again.
    again = command("explain", run)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
