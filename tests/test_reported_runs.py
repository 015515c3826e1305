"""Runs one after the other, as a night follows a night: what each says, and whom it calls."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from scopenote.flows.finish_run import artifact_key
from scopenote.flows.webhook import VARIABLE
from scopenote.store.database import open_store
from scopenote.store.label_history import LabelsInForce
from scopenote.store.run_folder import RunFolder
from scopenote.store.runs import read_runs

from .asking_runs import KEY, command, label_reply, rows, runs_that_ask
from .fake_openai import Answer, Asked, serve
from .rating_runs import (
    SIMULATOR,
    by_gold_rule,
    runs_that_rate,
    says_gold_rule,
    write_and_rate,
)
from .webhook_server import SECRET, webhook


def artifacts() -> list[dict[str, Any]]:
    """What the tests' Prefect server has."""
    request = urllib.request.Request(
        f"{os.environ['PREFECT_API_URL']}/artifacts/filter",
        data=json.dumps({"sort": "CREATED_DESC"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_second_run_says_what_it_added_to_the_first(collected: Path, tmp_path: Path) -> None:
    with serve(label_reply) as fake:
        run, config = runs_that_ask(collected, tmp_path)(fake, 4)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        config.write_text(config.read_text().replace("features = 4", "features = 7"))
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
    with open_store(run) as store:
        second, first, *_ = read_runs(store.connection, 5)
    for record, n, n_in_force in ((first, 4, 4), (second, 3, 7)):
        assert record.summary is not None
        assert record.summary.in_force == LabelsInForce(n_in_force, n, 0, 0)
        assert [(each.n, each.n_again) for each in record.summary.labels] == [(n, 0)]
        assert [(each.purpose, each.n_calls) for each in record.summary.cost] == [("explain", n)]
        assert record.stages[0]["reasons"]["no label"] == n
    assert second.summary is not None
    assert first.summary is not None
    assert second.summary.usd_in_all == (first.summary.usd or 0) + (second.summary.usd or 0)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_second_night_says_what_it_added_and_calls_somebody_where_the_judge_is_another(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_another = False

    def may_change(asked: Asked) -> Answer:
        is_rating = asked.body["messages"][0]["content"].startswith("You predict")
        if is_rating and says_gold_rule(asked.text) and not is_another:
            return by_gold_rule(asked)
        return write_and_rate(asked)

    make = runs_that_rate(collected, tmp_path, candidates=1, shuffled_labels=0)
    with serve(may_change, keeps_requests=False) as fake, webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        run, config = make(fake)
        first = command("run", config, "--out", run, key=KEY)
        assert first.returncode == 0, first.stderr
        assert "6 labels in force: 6 for the first time" in first.stdout
        assert hook.posted == []

        is_another = True
        text = config.read_text()
        config.write_text(text.replace("features = 6", "features = 10"))
        second = command("run", config, "--out", run, key=KEY)
        assert second.returncode == 4, second.stderr
        assert f"alert: {SIMULATOR} is not the judge it was" in second.stderr
        (posted,) = hook.posted
        n_asked = fake.n_asked

        # Nothing is left to do, nobody is asked, and so nobody is called.
        third = command("run", config, "--out", run, key=KEY)
        assert third.returncode == 0, third.stderr
        assert "This run" not in third.stdout
        assert (fake.n_asked, len(hook.posted)) == (n_asked, 1)

    assert "10 labels in force: 4 for the first time" in second.stdout
    last, then, before, *_ = json.loads(command("runs", run, "--json").stdout)
    assert last["summary"]["labels"] == []
    (labels,) = then["summary"]["labels"]
    assert (labels["n"], labels["n_again"]) == (4, 0)
    assert [each["kind"] for each in then["summary"]["alerts"]] == ["drift"]
    (scores,) = [each for each in then["summary"]["scores"] if each["simulator"] == SIMULATOR]
    n_scored, n_before = (
        each["n"] + sum(each["undefined"].values()) for each in (scores["now"], scores["before"])
    )
    assert (n_scored, n_before) == (10, 6)
    assert scores["medians"]["value"] == pytest.approx(
        scores["now"]["median"] - scores["before"]["median"]
    )
    calls = {each["purpose"]: each["n_calls"] for each in then["summary"]["cost"]}
    assert calls["explain"] == 4
    ((n_calls,),) = rows(run, "SELECT count(*) FROM calls")
    assert n_calls == sum(
        each["n_calls"] for record in (then, before) for each in record["summary"]["cost"]
    )
    assert posted["record"]["run_id"] == then["run_id"]
    assert "is not the judge it was" in posted["text"]

    status = json.loads(command("status", run, "--json").stdout)
    assert status["last"]["run_id"] == last["run_id"]
    assert "Last run" in command("status", run).stdout
    key = artifact_key(RunFolder(run))
    ours = [each["data"] for each in artifacts() if each["key"] == key]
    assert [("**Alert:**" in data) for data in ours] == [False, True, False]
    assert SIMULATOR in ours[1]
    files = [file for file in run.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert SECRET not in first.stderr + second.stderr + second.stdout


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_night_that_fails_calls_somebody_and_says_why(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(write_and_rate) as fake, webhook((500, 200)) as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        run, config = runs_that_rate(collected, tmp_path, candidates=1, gold=False)(fake)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        config.write_text(config.read_text().replace(fake.base_url, "https://api.openai.com/v1"))
        failed = command("run", config, "--out", run)
        assert failed.returncode == 2, failed.stderr
        assert "OPENAI_API_KEY" in failed.stderr
        assert "alert:" not in failed.stderr
    posted = hook.posted[-1]
    assert len(hook.posted) == 2  # it was down at first
    assert [each["kind"] for each in posted["alerts"]] == ["failed"]
    assert posted["alerts"][0]["text"].startswith("the run failed: ")
    shown = command("status", run).stdout
    assert "failed" in shown
    assert "the run failed: " in shown
