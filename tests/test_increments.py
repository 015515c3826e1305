"""Given again, a command does what has become necessary since, and spends what it may."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .asking_runs import KEY, command, environment, rows
from .fake_openai import serve
from .rating_runs import write_and_rate
from .small_runs import configure, write_corpus

pytestmark = pytest.mark.usefixtures("prefect_server")
SPENT = "what this invocation may spend is spent; the next one goes on"


@pytest.mark.slow
def test_newer_text_has_labels_made_and_scored_again_where_it_changes_them(tmp_path: Path) -> None:
    write_corpus(tmp_path, 300)
    with serve(write_and_rate, keeps_requests=False) as fake:
        config, run = configure(tmp_path, fake, besides=("token_lookup",)), tmp_path / "run"
        first = command("run", config, "--out", run, key=KEY)
        assert first.returncode == 0, first.stderr
        assert "features to ask a model about: 6 have no label\n" in first.stderr
        before = rows(run, "SELECT label_id FROM labels WHERE explainer = 'highlighted'")
        assert len(before) == 6
        asked_once = fake.n_asked

        write_corpus(tmp_path, 420)
        second = command("run", config, "--out", run, key=KEY)
        assert second.returncode == 0, second.stderr
        made = rows(
            run,
            """
            SELECT generation, why, count(*) FROM labels WHERE explainer = 'highlighted'
            GROUP BY ALL ORDER BY ALL
            """,
        )
        n_changed = made[-1][2]
        assert made == [(0, "no label", 6), (1, "other contexts", n_changed)]
        assert f"{n_changed:,} have other contexts since they were labelled\n" in second.stderr
        assert f"{n_changed:,} written for the reason “other contexts”" in second.stderr
        assert fake.n_asked > asked_once

        # No label in force has a score that the text has overtaken, and none a newer sibling that
        # nothing but its contexts tells from it.
        in_force = "SELECT count(*) FROM current_labels WHERE "
        assert rows(run, in_force + "score_stale_since IS NOT NULL") == [(0,)]
        assert rows(run, in_force + "explainer = 'token_lookup' AND score IS NOT NULL") > [(900,)]
        superseded = """
            explainer = 'token_lookup' AND (feature, generation + 1) IN
                (SELECT (feature, generation) FROM labels WHERE explainer = 'token_lookup')
        """
        assert rows(run, in_force + superseded) == [(0,)]

        asked_twice = fake.n_asked
        third = command("run", config, "--out", run, key=KEY)
        assert third.returncode == 0, third.stderr
        assert fake.n_asked == asked_twice
        assert "explain: nothing to do" in third.stderr
        assert "score: nothing to do" in third.stderr


@pytest.mark.long
@pytest.mark.parametrize("features_a_round", [128, 2])
def test_low_labels_get_another_candidate_a_run_until_there_are_enough(
    tmp_path: Path, features_a_round: int
) -> None:
    write_corpus(tmp_path, 200)
    # The command itself, but that few features are enough for several rounds. The module of the
    # flow loads Prefect, which may be loaded only once its home is set.
    in_rounds = f"""
from scopenote.flows import cli, prefect_home

isolate_prefect = prefect_home.isolate_prefect

def isolate_and_change(*arguments):
    server = isolate_prefect(*arguments)
    from scopenote.flows import label_corpus

    label_corpus._FEATURES_A_ROUND = {features_a_round}
    return server

prefect_home.isolate_prefect = isolate_and_change
cli.main()
"""
    with serve(write_and_rate, keeps_requests=False) as fake:
        config = configure(
            tmp_path, fake, again="below = 0.99\ncandidates = 3", more="[budget]\ncalls = 9_999"
        )
        run = tmp_path / "run"
        words = ["run", str(config), "--out", str(run), "--prefect-server"]
        counts = []
        for _ in range(4):
            finished = subprocess.run(
                [sys.executable, "-c", in_rounds, *words],
                capture_output=True,
                text=True,
                env=environment(KEY),
            )
            assert finished.returncode == 0, finished.stderr
            counts.append(
                rows(run, "SELECT count(*) FROM labels WHERE explainer = 'highlighted'")[0][0]
            )
        assert counts[0] == 6
        assert 6 < counts[1] <= 12
        assert counts[1] < counts[2] <= 18
        assert counts[3] == counts[2]
        again = rows(run, "SELECT DISTINCT draw, why FROM labels WHERE draw > 0 ORDER BY draw")
        assert again == [(1, "low score"), (2, "low score")]


def spend_until_done(tmp_path: Path, concurrency: int, budget: str, measure: str) -> list[Any]:
    """Gives the command until all is done; what there was by this measure after each."""
    write_corpus(tmp_path, 200)
    measured: list[Any] = [0]
    with serve(write_and_rate, keeps_requests=False) as fake:
        config = configure(
            tmp_path, fake, chat=f"concurrency = {concurrency}", more=f"[budget]\n{budget}"
        )
        run = tmp_path / "run"
        while len(measured) < 9:
            finished = command("run", config, "--out", run, key=KEY)
            assert finished.returncode == 0, finished.stderr
            measured.append(rows(run, f"SELECT {measure} FROM calls")[0][0])
            if SPENT not in finished.stderr:
                break
        assert rows(run, "SELECT count(*) FROM calls") == [(fake.n_asked,)]
        scored = "SELECT count(DISTINCT label_id) FROM scores WHERE simulator LIKE 'chat/%'"
        assert rows(run, scored) == [(6,)]
    return [after - before for before, after in pairwise(measured)]


@pytest.mark.long
@pytest.mark.parametrize("concurrency", [1, 32])
def test_each_invocation_makes_as_many_calls_as_it_may_until_all_is_done(
    tmp_path: Path, concurrency: int
) -> None:
    first, second = spend_until_done(tmp_path, concurrency, "calls = 40", "count(*)")
    assert first == 40
    assert 0 < second <= 40


@pytest.mark.long
@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_each_invocation_spends_no_more_dollars_than_it_may(
    tmp_path: Path, concurrency: int
) -> None:
    limit = Decimal("0.004")
    spent = spend_until_done(tmp_path, concurrency, f"usd = {limit}", "sum(usd)")
    assert len(spent) > 2
    assert all(0 < each <= limit for each in spent)
    # Not much is left over: a call may cost far more than it does.
    assert all(each > limit / 3 for each in spent[:-1])
