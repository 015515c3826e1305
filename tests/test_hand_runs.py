"""A label by hand among those of a run: absorbed, rated by the judge, left alone by all else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .asking_runs import KEY, MISTAKE, command, rows
from .fake_openai import serve
from .rating_runs import SIMULATOR, runs_that_rate, write_and_rate

ALL_SCORES = "SELECT * EXCLUDE (run_id) FROM scores ORDER BY ALL"


def show(run: Path, feature: str) -> dict:
    shown = command("show", run, feature, "--n", "0", "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_label_by_hand_is_absorbed_and_rated_and_disturbs_no_stage(
    collected: Path, tmp_path: Path
) -> None:
    asking = runs_that_rate(collected, tmp_path, candidates=1, shuffled_labels=0)
    with serve(write_and_rate) as fake:
        run, config = asking(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        ((sae, number, word),) = rows(
            run,
            "SELECT l.sae_id, l.feature, f.top_tokens[1] FROM labels l JOIN features f "
            "USING (sae_id, feature) WHERE explainer = 'highlighted' AND l.status = 'done' "
            "ORDER BY ALL LIMIT 1",
        )
        feature = f"{sae}/{number}"
        automatic = show(run, feature)["label"]["label_id"]
        text = f"only {(word or 'self').strip()}"
        written = command("label", run, feature, text, "--author", "ann")
        assert written.returncode == 0, written.stderr
        label_id = show(run, feature)["label"]["label_id"]
        assert command("vote", run, label_id, "up", "--author", "bob").returncode == 0
        assert len(list((run / "inbox").iterdir())) == 2
        assert rows(run, "SELECT count(*) FROM labels WHERE source = 'human'") == [(0,)]
        for read in (("status", run), ("estimate", run), ("runs", run)):
            done = command(*read)
            assert done.returncode == 0, done.stderr

        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert list((run / "inbox").iterdir()) == []
        assert rows(run, "SELECT label_id, text, author FROM labels WHERE source = 'human'") == [
            (label_id, text, "ann")
        ]
        assert rows(run, "SELECT label_id, author, vote FROM votes") == [(label_id, "bob", 1)]
        simulators = f"SELECT DISTINCT simulator, split FROM scores WHERE label_id = '{label_id}'"
        assert rows(run, simulators) == [(SIMULATOR, "score")]
        page = show(run, feature)
        assert (page["label"]["label_id"], page["label"]["n_up"]) == (label_id, 1)
        assert command("status", run).returncode == 0
        replayed = command("replay", run, label_id)
        assert replayed.returncode == MISTAKE
        assert "source human, author ann" in replayed.stderr

        before, n_asked = rows(run, ALL_SCORES), fake.n_asked
        assert command("score", run, "--recompute").returncode == 0
        assert rows(run, ALL_SCORES) == before
        withdrawn = command("label", run, feature, "--withdraw", "--author", "ann")
        assert withdrawn.returncode == 0, withdrawn.stderr
        assert show(run, feature)["label"]["label_id"] == automatic
        for again in (("score",), ("score", "--recompute"), ("explain",)):
            done = command(again[0], run, *again[1:], key=KEY)
            assert done.returncode == 0, done.stderr
        assert rows(run, ALL_SCORES) == before
        assert fake.n_asked == n_asked
        assert show(run, feature)["label"]["label_id"] == automatic
