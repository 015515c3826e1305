"""The pages of runs: what each did, changed and cost, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from scopenote.flows.dashboard.app import create_app
from scopenote.flows.dashboard.site import Site
from scopenote.flows.reports import RunReport, StageReport
from scopenote.store.calls import Spending
from scopenote.store.database import open_work, publish
from scopenote.store.label_history import LabelsInForce
from scopenote.store.records import ScoreChange
from scopenote.store.run_summaries import (
    REPORT,
    Alert,
    Distribution,
    NewLabels,
    RunSummary,
    ScoreComparison,
    TriedWindows,
)
from scopenote.store.runs import begin_run, count_runs, end_run, read_run, read_runs
from starlette.testclient import TestClient

from .made_up_run import make_database
from .test_overview_page import page, words_of

HOSTILE = "<img src=x onerror=alert(1)>"


def summary() -> RunSummary:
    before = Distribution(90, 0.3, 0.512, 0.7, {})
    now = Distribution(100, 0.35, 0.548, 0.75, {"too few active tokens": 3})
    change = ScoreChange(0.036, 0.011, 0.062, 90)
    return RunSummary(
        covered=("x",),
        labels=(NewLabels("highlighted", "m", 20, 5, {"refused": 2}),),
        in_force=LabelsInForce(120, 15, 5, 0),
        scores=(ScoreComparison("chat/m", before, now, change, None),),
        windows=TriedWindows(1000, 4),
        call_failures={"timeout": 3},
        cost=(Spending("explain", "m", 25, 3, 0, 1000, 0, 100, Decimal("0.0125")),),
        usd=Decimal("0.0125"),
        usd_in_all=Decimal("1.5"),
        n_unpriced_in_all=0,
        alerts=(Alert("drift", f"chat/m is not the judge it was {HOSTILE}"),),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_database(tmp_path / "work.duckdb").close()
    report = RunReport((StageReport("explain", "labels", 20, 100, {"refused": 2}, 65.0),))
    with open_work(tmp_path) as work:
        run_id = begin_run(work, "run", {"score": {"seed": 7, "note": HOSTILE}}, "0.2.0")
        end_run(work, run_id, "done", {**report.as_dict(), REPORT: summary().as_dict()})
        work.execute("UPDATE runs SET run_id = 'x' WHERE run_id = $1", [run_id])
        publish(work, tmp_path)
    return tmp_path


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Site(run)), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("address", ["/", "/runs"])
def test_a_run_is_a_line_with_what_it_did_changed_and_cost(
    client: TestClient, address: str
) -> None:
    text = words_of(page(client, address))
    assert "explain: 20 labels, 100 there before" in text
    assert "0.548 chat/m" in text
    assert "+0.036 (0.011 to 0.062)" in text
    assert "$0.012" in text
    assert "1 alert" in text and "chat/m is not the judge it was" in text


def test_runs_that_left_no_record_are_listed_too(client: TestClient) -> None:
    text = words_of(page(client, "/runs"))
    assert "Runs 3" in text
    assert "interrupted" in text and "not on record" in text


def test_a_run_in_full_says_all_that_the_terminal_says(client: TestClient) -> None:
    text = words_of(page(client, "/runs/x"))
    assert "explain 20 labels, 100 there before 1 min 05 s" in text
    assert "120 labels in force: 15 for the first time, 5 in place of another" in text
    assert "median of all: +0.036 (0.011 to 0.062)" in text
    assert "3 undefined (0 before): too few active tokens" in text
    assert "3 calls timeout" in text and "2 labels refused" in text
    assert "$0.012 now, $1.50 in all" in text
    assert '"seed": 7' in text


def test_hostile_settings_and_alerts_are_shown_as_text(client: TestClient) -> None:
    for address in ("/", "/runs", "/runs/x"):
        assert "<img" not in page(client, address)
        assert "&lt;img src=x onerror=alert(1)&gt;" in page(client, address)


@pytest.mark.parametrize("run_id", ["nope", "' OR 1=1 --", "..%2Fx", "%00"])
def test_an_unknown_run_is_a_helpful_404(client: TestClient, run_id: str) -> None:
    answer = client.get(f"/runs/{run_id}")
    assert answer.status_code == 404
    assert "scopenote runs RUN" in answer.text or "Not Found" in answer.text


def test_many_runs_are_paged(client: TestClient, run: Path) -> None:
    with open_work(run) as work:
        began = datetime(2026, 1, 1, tzinfo=UTC)
        work.executemany(
            "INSERT INTO runs (run_id, command, started_at, status) VALUES (?, 'score', ?, 'done')",
            [(f"o{n:02}", began + timedelta(days=n)) for n in range(60)],
        )
        publish(work, run)
        assert count_runs(work) == 63
        assert [each.run_id for each in read_runs(work, 2, 3)] == ["o59", "o58"]
        assert read_run(work, "o07") is not None and read_run(work, "o61") is None
    last = page(client, "/runs?page=3")
    assert last.count('href="/runs/o') == 13
    assert "page 3 of 3" in words_of(last)
    assert "There is no page 9: there are 3." in words_of(page(client, "/runs?page=9"))
    assert client.get("/runs?page=0").status_code == 422


def test_a_folder_without_runs_says_so(client: TestClient, run: Path) -> None:
    with open_work(run) as work:
        work.execute("DELETE FROM runs")
        publish(work, run)
    assert "Nobody has worked on this run yet." in words_of(page(client, "/runs"))
    assert "All runs" not in words_of(page(client))
