"""Labels by others in a run that scores: on the same footing as those that it wrote itself."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from .asking_runs import KEY, command, rows
from .fake_openai import serve
from .rating_runs import NONSENSE, SIMULATOR, runs_that_rate, write_and_rate

OWN = """
    SELECT l.sae_id, l.feature, l.text, f.top_tokens[1]
    FROM labels l JOIN features f USING (sae_id, feature)
    WHERE explainer = 'highlighted' AND l.status = 'done' ORDER BY ALL
"""


def scores_of(run: Path, explainer: str) -> list[tuple]:
    """All that the judge made of these labels, but for the names of label and run."""
    return rows(
        run,
        "SELECT l.sae_id, l.feature, l.text, s.* EXCLUDE (label_id, run_id) "
        f"FROM scores s JOIN labels l USING (label_id) WHERE explainer = '{explainer}' "
        f"AND simulator = '{SIMULATOR}' AND scorer = 'simulation' ORDER BY ALL",
    )


def write_csv(file: Path, labels: list[tuple]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(("feature", "text"))
        table.writerows((f"{sae}/{number}", text) for sae, number, text in labels)
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_an_imported_label_scores_like_the_same_text_of_our_own(
    collected: Path, tmp_path: Path
) -> None:
    asking = runs_that_rate(collected, tmp_path, candidates=1, shuffled_labels=0, gold=False)
    with serve(write_and_rate) as fake:
        run, config = asking(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        own = rows(run, OWN)
        same = write_csv(tmp_path / "same.csv", [row[:3] for row in own])
        better = write_csv(
            tmp_path / "better.csv",
            [(sae, number, f"only {(word or 'self').strip()}") for sae, number, _, word in own],
        )
        for file in (same, better):
            done = command("import-labels", run, file)
            assert done.returncode == 0, done.stderr
        estimated = command("estimate", run)
        assert estimated.returncode == 0, estimated.stderr
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        n_asked = fake.n_asked
        assert "nothing to do" in command("score", run, key=KEY).stderr
        assert fake.n_asked == n_asked

    ours = scores_of(run, "highlighted")
    assert {row[2] for row in ours} > {NONSENSE}
    assert ours == scores_of(run, "same")
    headlines = rows(
        run,
        "SELECT l.sae_id, l.feature, explainer, s.value FROM labels l JOIN scores s "
        "USING (label_id) WHERE split = 'select' AND metric = 'correlation' "
        "AND s.value IS NOT NULL AND explainer IN ('better', 'highlighted')",
    )
    value = {(sae, number, who): found for sae, number, who, found in headlines}
    in_force = {
        (sae, number): (source, explainer)
        for sae, number, source, explainer in rows(
            run, "SELECT sae_id, feature, source, explainer FROM current_labels"
        )
    }
    won = [
        (sae, number)
        for sae, number, text, _ in own
        if text == NONSENSE and (sae, number, "better") in value
    ]
    assert won, "a label that predicts nothing is beaten by one that predicts something"
    for feature in won:
        assert in_force[feature] == ("imported", "better")
    status = command("status", run)
    assert status.returncode == 0, status.stderr
    assert "better" in status.stdout
