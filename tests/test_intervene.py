"""Steering with labelled features as a user has it done, from the command to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.extract.steered_outputs import NO_DIRECTION
from scopenote.flows.intervene import SteerWork, not_compared_with
from scopenote.store.records import FeatureId

from .asking_runs import (
    ALL_CALLS,
    KEY,
    assert_the_ledger_is_the_servers,
    command,
    rows,
)
from .fake_openai import Answer, Asked, serve
from .rating_runs import N_FEATURES, rated, runs_that_rate, write_and_rate
from .test_intervention import outputs

STEERED = (
    "SELECT l.sae_id, l.feature, s.metric, s.simulator, s.value, s.reason, s.ci_low, s.ci_high, "
    "s.design, s.contexts_hash FROM scores s JOIN labels l USING (label_id) "
    "WHERE s.scorer = 'intervention' ORDER BY ALL"
)
FIGURES = "SELECT * EXCLUDE (run_id) FROM scores WHERE scorer = 'intervention' ORDER BY ALL"
FEW = "random_features = 6\nquestions = 3\nprompts = 3"


def settings(features: int, more: str = FEW) -> str:
    return f"\n[score.intervention]\nfeatures = {features}\n{more}\n"


def takes_the_second(asked: Asked) -> Answer:
    """Of three groups the second; all other questions by their labels."""
    if not asked.body["messages"][0]["content"].startswith("You say which of three groups"):
        return write_and_rate(asked)
    assert len(re.findall(r"⟦group [123]⟧\nmore probable: “", asked.text)) == 3
    return rated(["1"], [2], sum(len(each["content"]) for each in asked.body["messages"]) // 4, 0)


def test_a_feature_is_compared_with_neither_itself_nor_its_neighbours() -> None:
    near = frozenset({3, 9})
    assert not_compared_with(FeatureId("gemma-2-2b/20-gemmascope-res-16k", 7), near) == {3, 7, 9}
    # 1393+ and 1393- are one coordinate in two directions.
    basis = "gemma-2-2b/20-mlp-neurons"
    assert not_compared_with(FeatureId(basis, 2786), frozenset()) == {2786, 2787}
    assert not_compared_with(FeatureId(basis, 2787), frozenset()) == {2786, 2787}


@pytest.mark.parametrize("n_others", [0, 2, 5])
def test_the_others_are_the_first_drawn_that_can_be_turned_up(n_others: int) -> None:
    known: dict[int, Any] = {feature: outputs(feature, 0.0) for feature in (5, 8, 1, 6)}
    known[2] = NO_DIRECTION
    nothing: Any = None
    work = SteerWork(
        bench=nothing, vocabulary=nothing, terms=nothing, drawn=[5, 2, 8, 1, 6],
        n_others=n_others, store=nothing, folder=nothing, run_id="r", stage=nothing, outputs=known,
    )  # fmt: skip
    found = [each.feature for each in work.others(frozenset({1}))]
    assert found == [5, 8, 6][:n_others]


@pytest.fixture
def judged(collected: Path, tmp_path: Path) -> Any:
    """A run of which a scripted model has written the labels, one a feature."""
    make = runs_that_rate(
        collected, tmp_path, candidates=1, gold=False, shuffled_labels=0,
        active_windows=2, silent_windows=2,
    )  # fmt: skip

    def begin(fake: Any, features: int, more: str = FEW) -> tuple[Path, Path]:
        run, config = make(fake)
        config.write_text(config.read_text() + settings(features, more))
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        return run, config

    return begin


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_labelled_features_are_turned_up_and_a_judge_is_asked_once(judged: Any) -> None:
    with serve(takes_the_second, keeps_requests=False) as fake:
        run, config = judged(fake, 4)
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert "4 labelled features turned up: promoted tokens" in scored.stderr
        assert "4 labels told apart by outputs" in scored.stderr
        assert_the_ledger_is_the_servers(run, fake)
        n_asked = fake.n_asked
        again = command("score", run, key=KEY)
        assert "nothing to do" in again.stderr
        assert "turned up" not in again.stderr
        # From the record, the same.
        before = rows(run, FIGURES)
        with duckdb.connect(str(run / "work.duckdb")) as work:
            work.execute("UPDATE scores SET value = 0.1 WHERE metric = 'told_apart'")
        assert command("score", run, "--recompute").returncode == 0
        assert rows(run, FIGURES) == before
        assert fake.n_asked == n_asked

        found = rows(run, STEERED)
        promoted = [row for row in found if row[2] == "promoted_tokens"]
        told = [row for row in found if row[2] == "told_apart"]
        assert {row[:2] for row in promoted} == {row[:2] for row in told}
        assert (len(promoted), len(told)) == (4, 4)
        assert {row[3] for row in promoted} == {"model/toy-gemma-2"}
        assert {row[3] for row in told} == {"chat/gpt-4o-mini"}
        purposes = dict(rows(run, f"SELECT purpose, count(*) FROM {ALL_CALLS} GROUP BY purpose"))
        assert purposes["intervention"] == 4 * 3
        for *_, value, reason, low, high, design, _ in found:
            assert (value is None) == (reason is not None) == (low is None)
            assert value is None or low <= value <= high
            assert json.loads(design)["strength"] == 1.0
        # The own group stands once in each of three places: one of three is right.
        assert [row[4] for row in told] == pytest.approx([0] * 4)
        for row in promoted:
            facts = json.loads(row[8])
            others = {rival["feature"] for rival in facts["rivals"]}
            assert len(others) == 6
            assert row[1] not in others
            assert (len(facts["promoted"]), len(facts["written"])) == (10, 3)

        # Two more features, and the four stay as they are.
        config.write_text(
            config.read_text().replace("features = 4\n", f"features = {N_FEATURES}\n")
        )
        more = command("score", run, "--config", config, key=KEY)
        assert more.returncode == 0, more.stderr
        assert f"{N_FEATURES - 4} labelled features turned up" in more.stderr
        assert set(found) < set(rows(run, STEERED))

    page = command("status", run)
    assert re.search(r"intervention +others +\S+ +0.00 +\d+", page.stdout)
    assert re.search(r"intervention +told apart +0.00 +0.00 +6", page.stdout)
    sae_id, feature = found[0][:2]
    shown = command("show", run, f"{sae_id}/{feature}")
    assert "intervention promoted_tokens" in shown.stdout
    assert "intervention told_apart" in shown.stdout


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_questions_that_are_not_wanted_are_not_asked_and_may_be_later(judged: Any) -> None:
    with serve(takes_the_second, keeps_requests=False) as fake:
        run, config = judged(fake, 2, "random_features = 6\nquestions = 0\nprompts = 2")
        assert command("score", run, key=KEY).returncode == 0
        assert {row[2] for row in rows(run, STEERED)} == {"promoted_tokens"}
        n_asked = fake.n_asked
        config.write_text(config.read_text().replace("questions = 0", "questions = 3"))
        assert command("score", run, "--config", config, key=KEY).returncode == 0
        assert fake.n_asked == n_asked + 2 * 3
        assert len(rows(run, STEERED)) == 4


@pytest.fixture
def unjudged(collected: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run with a label for some features and nobody who judges them, and its configuration."""
    with serve(write_and_rate, keeps_requests=False) as fake:
        run, config = runs_that_rate(collected, tmp_path, candidates=1)(fake, ())
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
    return run, config


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_without_a_judge_what_is_promoted_is_scored_and_the_same_again(
    unjudged: tuple[Path, Path],
) -> None:
    run, config = unjudged
    config.write_text(config.read_text() + settings(N_FEATURES))
    scored = command("score", run, "--config", config)
    assert scored.returncode == 0, scored.stderr
    first = rows(run, FIGURES)
    assert len(first) == N_FEATURES
    for database in ("work.duckdb", "scopenote.duckdb"):
        with duckdb.connect(str(run / database)) as connection:
            connection.execute("DELETE FROM scores WHERE scorer = 'intervention'")
    assert command("score", run).returncode == 0
    assert rows(run, FIGURES) == first


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_an_sae_that_is_another_now_is_said_and_the_run_stays_as_it_was(
    unjudged: tuple[Path, Path],
) -> None:
    run, config = unjudged
    labels = rows(run, "SELECT * FROM current_labels ORDER BY ALL")
    for database in ("work.duckdb", "scopenote.duckdb"):
        with duckdb.connect(str(run / database)) as connection:
            connection.execute("UPDATE saes SET content_hash = 'of others'")
    config.write_text(config.read_text() + settings(2))
    scored = command("score", run, "--config", config)
    assert scored.returncode not in (0, 3)
    assert "Traceback" not in scored.stderr
    assert "Error: An SAE is no longer the one that this run folder was collected with" in (
        scored.stderr
    )
    assert rows(run, "SELECT * FROM current_labels ORDER BY ALL") == labels
    assert rows(run, FIGURES) == []
