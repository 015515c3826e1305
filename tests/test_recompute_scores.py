"""Scores computed again from stored predictions: the same rows, with no model asked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import duckdb
import pytest

from .asking_runs import KEY, MISTAKE, command, rows
from .fake_openai import serve
from .rating_runs import SIMULATOR, runs_that_rate, write_and_rate

ALL_SCORES = "SELECT * EXCLUDE (run_id) FROM scores ORDER BY ALL"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_scores_are_computed_again_without_a_model(collected: Path, tmp_path: Path) -> None:
    asking = runs_that_rate(
        collected,
        tmp_path,
        candidates=2,
        shuffled_labels=3,
        screen="words_or_lookup",
        screened_windows=60,
        looks=[0.5, 1.0],
        narrow=0.6,
        silent_windows=24,
    )
    with serve(write_and_rate) as fake:
        run, config = asking(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert re.search(r"windows simulated instead of [\d,]+: looking early saved", scored.stderr)
        n_asked = fake.n_asked
        before = rows(run, ALL_SCORES)
        _spoil(run)
        assert rows(run, ALL_SCORES) == before, "readers see what is published"
        again = command("score", run, "--recompute")
        assert again.returncode == 0, again.stderr
        assert fake.n_asked == n_asked
    assert rows(run, ALL_SCORES) == before
    designs = [
        json.loads(design)
        for (design,) in rows(
            run,
            f"SELECT design FROM scores WHERE simulator = '{SIMULATOR}' AND split = 'score' "
            "AND scorer = 'simulation' AND metric = 'correlation'",
        )
    ]
    assert {each["screen"] for each in designs} == {"words_or_lookup"}
    assert {each["n_looks"] for each in designs} == {2}
    assert {each["look"] for each in designs} <= {1, 2}
    assert any(each["n_suspects_rated"] for each in designs)


def _spoil(run: Path) -> None:
    """As if an older version had made a mistake, and had lacked a metric."""
    with duckdb.connect(str(run / "work.duckdb")) as work:
        work.execute("UPDATE scores SET value = 0.5, lift = 7, ci_low = -1 WHERE value IS NOT NULL")
        work.execute("DELETE FROM scores WHERE metric = 'ev_r_squared_top'")


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_what_was_scored_without_keeping_silent_predictions_is_left_and_said(
    collected: Path, tmp_path: Path
) -> None:
    with serve(write_and_rate) as fake:
        run, config = runs_that_rate(collected, tmp_path, candidates=1, shuffled_labels=0)(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        assert command("score", run, key=KEY).returncode == 0
    with duckdb.connect(str(run / "work.duckdb")) as work:
        work.execute(
            "DELETE FROM simulations WHERE simulator = ? AND window_id IN "
            "(SELECT window_id FROM windows WHERE is_background)",
            [SIMULATOR],
        )
    shutil.copy(run / "work.duckdb", run / "scopenote.duckdb")
    before = rows(run, ALL_SCORES)
    again = command("score", run, "--recompute")
    assert again.returncode == 0, again.stderr
    assert "scored by a version that kept no predictions on silent windows" in again.stderr
    assert rows(run, ALL_SCORES) == before


def test_recomputing_has_nothing_to_spend(tmp_path: Path) -> None:
    found = command("score", tmp_path, "--recompute", "--budget-usd", "1")
    assert found.returncode == MISTAKE
    assert "--recompute" in found.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_run_without_scores_says_so_and_does_not_seem_done(
    collected: Path, tmp_path: Path
) -> None:
    shutil.copytree(collected, tmp_path / "run")
    found = command("score", tmp_path / "run", "--recompute")
    assert found.returncode != 0
    assert "no scores yet" in found.stderr
    assert "Traceback" not in found.stderr
