"""The history of a run, from the table to the page."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
from rich.console import Console
from scopenote.flows.past_runs import render_runs
from scopenote.flows.reports import RunReport, StageReport
from scopenote.store.runs import begin_run, end_run, read_runs
from scopenote.store.schema import MIGRATIONS

from .asking_runs import command


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    return connection


def page(connection: duckdb.DuckDBPyConnection, n: int = 20) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_runs(read_runs(connection, n)))
    return console.export_text()


def test_a_run_is_shown_with_what_it_did_and_what_failed(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin_run(connection, "explain", {}, "0.1.0")
    stage = StageReport(
        stage="explain",
        unit="labels",
        done=1200,
        already_done=30,
        failures={"the model declined to answer": 7},
        notes=("1,207 calls, $0.75",),
        waiting=4,
    )
    end_run(connection, run_id, "done", RunReport((stage,)).as_dict())
    (record,) = read_runs(connection, 5)
    assert (record.run_id, record.status, record.version) == (run_id, "done", "0.1.0")
    shown = page(connection)
    for words in (
        f"done  {run_id}, version 0.1.0",
        "explain: 1,200 labels, 30 there before",
        "explain: 4 wait for answers",
        "explain: 7 failed: the model declined to answer",
        "explain: 1,207 calls, $0.75",
    ):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_latest_is_first_and_one_that_died_is_said_to_have(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    first = begin_run(connection, "collect", {}, "0.1.0")
    second = begin_run(connection, "score", {}, "0.1.0")
    connection.execute(
        "UPDATE runs SET started_at = started_at - ? WHERE run_id = ?", [timedelta(hours=1), first]
    )
    assert [each.run_id for each in read_runs(connection, 9)] == [second, first]
    assert [each.status for each in read_runs(connection, 9)] == ["running", "interrupted"]
    assert [each.run_id for each in read_runs(connection, 1)] == [second]
    assert read_runs(connection, 9)[1].stages == ()
    assert page(connection).index("score") < page(connection).index("collect")


def test_a_run_on_which_nobody_has_worked_says_so(connection: duckdb.DuckDBPyConnection) -> None:
    assert "Nobody has worked on this run yet." in page(connection)


@pytest.mark.slow
def test_the_command_lists_a_real_run_and_json_has_all_of_it(collected: Path) -> None:
    shown = command("runs", collected)
    assert shown.returncode == 0, shown.stderr
    assert "collect: " in shown.stdout
    (record,) = json.loads(command("runs", collected, "--json").stdout)
    assert record["command"] == "collect"
    assert record["stages"][0]["done"] > 1000
