"""When somebody is to look at a run, and how they are told: over real HTTP, or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.flows.alert_settings import AlertSection
from scopenote.flows.alerts import find_alerts
from scopenote.flows.finish_run import artifact_key, finish_run
from scopenote.flows.reports import RunReport, StageReport
from scopenote.flows.webhook import VARIABLE, WebhookPatience, post_to
from scopenote.store.batch_record import Batch
from scopenote.store.database import now, open_store, open_work, publish
from scopenote.store.errors import BudgetSpent, ExitCode, StoreError
from scopenote.store.gold import GoldScore, gold_table
from scopenote.store.run_folder import RunFolder
from scopenote.store.run_summaries import RunSummary
from scopenote.store.runs import read_last_ended

from .made_up_history import DONE, JUDGE, begin, end, label, make_history, score
from .webhook_server import SECRET, webhook

QUICK = WebhookPatience(attempts=3, first_wait_seconds=0.01, most_wait_seconds=0.02)
FEW_FAIL = StageReport("explain", "labels", 96, failures={"no reply": 4})
MANY_FAIL = StageReport("explain", "labels", 94, failures={"no reply": 4, "cut off": 2})


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with make_history() as connection:
        yield connection


def kinds(summary: RunSummary) -> list[str]:
    return [alert.kind for alert in summary.alerts]


# --- when -------------------------------------------------------------------------------------


def test_a_run_as_it_should_be_raises_none(connection: duckdb.DuckDBPyConnection) -> None:
    assert end(connection, begin(connection)).alerts == ()


def test_more_failures_than_are_allowed_raise_one(connection: duckdb.DuckDBPyConnection) -> None:
    assert end(connection, begin(connection), RunReport((FEW_FAIL,))).alerts == ()
    (alert,) = end(connection, begin(connection), RunReport((MANY_FAIL,))).alerts
    assert alert.kind == "failures"
    assert alert.text == "explain: 6 of 100 labels failed (6%; 5% are allowed)"
    allowed = end(connection, begin(connection), RunReport((MANY_FAIL,)), failed_share=0.06)
    assert allowed.alerts == ()


@pytest.mark.parametrize(("n_failed", "expected"), [(5, []), (6, ["failures"])])
def test_windows_that_failed_are_a_share_of_the_windows_and_not_of_the_labels(
    connection: duckdb.DuckDBPyConnection, n_failed: int, expected: list[str]
) -> None:
    run_id = begin(connection)
    label(connection, run_id, [0])
    score(connection, run_id, {0: 0.5})
    connection.executemany(
        "INSERT INTO simulations (label_id, simulator, window_id, status) VALUES ('a0', ?, ?, ?)",
        [[JUDGE, n, "failed" if n < n_failed else "done"] for n in range(100)],
    )
    stage = StageReport("score", "labels", 1, failures={"windows to be rated: x": n_failed})
    assert kinds(end(connection, run_id, RunReport((stage,)))) == expected


def drifted(connection: duckdb.DuckDBPyConnection, folder: Path, by: float) -> str:
    """Two runs of the gold items, the second by so much lower; the id of the second run."""
    import pyarrow.parquet as pq

    for number, fall in enumerate((0.0, by)):
        run_id = begin(connection)
        scores = [
            GoldScore(
                JUDGE, "v1", f"item {n}", 0.9 - fall + n / 1000 * number, None, 0.0, None, 9, 0
            )
            for n in range(8)
        ]
        file = folder / f"{number}.parquet"
        table = gold_table(scores, run_id, datetime.now(UTC) + timedelta(seconds=number))
        pq.write_table(table, file)
        connection.execute(f"INSERT INTO gold_scores BY NAME FROM read_parquet('{file}')")
        if number == 0:
            assert end(connection, run_id).alerts == ()
    return run_id


def test_a_judge_that_is_another_raises_one(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    (alert,) = end(connection, drifted(connection, tmp_path, by=0.4)).alerts
    assert alert.kind == "drift"
    assert alert.text.startswith(f"{JUDGE} is not the judge it was")
    assert alert.text.endswith("by -0.40 (1 earlier run)")
    # Said once: in a run that does not ask the judge there is no news of it.
    assert end(connection, begin(connection)).alerts == ()


def test_drift_may_be_left_out(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    assert end(connection, drifted(connection, tmp_path, by=0.4), drift=False).alerts == ()


@pytest.mark.parametrize(
    ("by", "allowed", "expected"),
    [(0.1, 0.0, ["score_drop"]), (0.1, 0.2, []), (-0.1, 0.0, []), (0.001, 0.0, [])],
)
def test_scores_that_fell_beyond_chance_by_more_than_is_allowed_raise_one(
    connection: duckdb.DuckDBPyConnection, by: float, allowed: float, expected: list[str]
) -> None:
    run_id = begin(connection)
    label(connection, run_id, range(30))
    score(connection, run_id, dict.fromkeys(range(30), 0.5))
    end(connection, run_id)
    again = begin(connection)
    score(connection, again, {f: 0.5 - by + 0.01 * (-1) ** f for f in range(30)})
    assert kinds(end(connection, again, score_drop=allowed)) == expected


def test_a_run_that_failed_raises_one_and_names_its_error_in_a_line(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    (alert,) = end(connection, run_id, error=ValueError("a\nb" + "c" * 999)).alerts
    assert alert.kind == "failed"
    assert alert.text.startswith("the run failed: ValueError: a b")
    assert len(alert.text) < 350


def test_a_budget_that_was_spent_on_something_raises_none_and_on_nothing_one(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    spent = BudgetSpent("The budget does not cover the next call.")
    assert end(connection, begin(connection), RunReport((DONE,)), spent).alerts == ()
    nothing = RunReport((StageReport("score", "labels", 0, already_done=40),))
    assert kinds(end(connection, begin(connection), nothing, spent)) == ["stalled"]


def test_a_run_that_may_spend_nothing_more_is_noticed_though_it_read_text(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    read = StageReport("collect", "tokens", 1000)
    spent = StageReport("explain", "labels", 0, 40, left=1234, is_spent=True)
    (alert,) = end(connection, begin(connection), RunReport((read, spent))).alerts
    assert (alert.kind, "1,234 features are left" in alert.text) == ("stalled", True)
    scored = StageReport("score", "labels", 1)
    assert end(connection, begin(connection), RunReport((read, spent, scored))).alerts == ()


def test_calls_that_finished_no_label_are_something_all_the_same(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    connection.execute(
        "INSERT INTO calls (request_hash, purpose, model, created_at) "
        "VALUES ('a', 'simulate', 'judge', now())"
    )
    spent = StageReport("score", "labels", 0, 40, is_spent=True)
    assert end(connection, run_id, RunReport((spent,))).alerts == ()


@pytest.mark.parametrize(("hours", "expected"), [(23, []), (30, ["stalled"])])
def test_a_batch_that_should_be_done_by_now_raises_one(
    connection: duckdb.DuckDBPyConnection, hours: int, expected: list[str]
) -> None:
    summary = end(connection, begin(connection))
    at = now()
    batch = Batch(
        batch_id="b",
        provider_id="p",
        state="in_progress",
        endpoint="e",
        model="m",
        n_requests=1,
        n_tokens=1,
        most_usd=None,
        prepared_at=at,
        submitted_at=at - timedelta(hours=hours),
        lacking={},
    )
    found = find_alerts(summary, RunReport(()), AlertSection(), None, [batch], at)
    assert [alert.kind for alert in found] == expected


# --- who is told ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "reason", "n_posted"),
    [
        ((200,), None, 1),
        ((204,), None, 1),
        ((503, 429, 200), None, 3),
        ((500,), "it answered 500, 3 times", 3),
        ((404,), "it answered 404", 1),
        ((302,), "it answered 302", 1),
    ],
)
def test_what_may_pass_is_tried_again_and_nothing_else(
    answers: tuple[int, ...], reason: str | None, n_posted: int
) -> None:
    with webhook(answers) as hook:
        assert post_to(hook.address, {"text": "hello"}, QUICK) == reason
        assert hook.posted == [{"text": "hello"}] * n_posted


def test_nobody_there_and_nobody_who_answers_are_said_without_the_address() -> None:
    with webhook() as gone:
        pass
    said = post_to(gone.address, {}, QUICK)
    assert said == "no connection (ConnectError), 3 times"
    impatient = WebhookPatience(attempts=1, attempt_seconds=0.05)
    with webhook(seconds=1.0) as slow:
        assert post_to(slow.address, {}, impatient) == "no answer within 0.05 seconds"


@pytest.mark.parametrize("address", [SECRET, f"ftp://{SECRET}", f"http://[{SECRET}", "http://"])
def test_what_is_no_address_is_said_without_repeating_it(address: str) -> None:
    said = post_to(address, {}, QUICK)
    assert said is not None
    assert SECRET not in said


def test_no_log_has_the_address(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), webhook((500, 200)) as hook:
        logging.getLogger("httpx2").debug("heard before")
        assert post_to(hook.address, {}, QUICK) is None
        logging.getLogger("httpx2").debug("heard after")
    assert [record.message for record in caplog.records if record.name.startswith("http")] == [
        "heard before",
        "heard after",
    ]
    assert SECRET not in caplog.text


# --- at the end of a run ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "My run").create()
    folder.write_config("")
    return folder


def one_run(
    folder: RunFolder, report: RunReport, error: Exception | None = None
) -> tuple[datetime, str]:
    """A run that is over but for its finish: a moment before it began, and its id."""
    began_at = now()
    with open_work(folder.path) as work:
        run_id = begin(work)
        end(work, run_id, report, error)
        publish(work, folder.path)
    return began_at, run_id


def notes(folder: RunFolder) -> tuple[str, ...]:
    with open_store(folder.path) as store:
        record = read_last_ended(store.connection)
    assert record is not None
    return record.notes


def files_with_the_secret(folder: RunFolder) -> list[Path]:
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    assert files
    return [file for file in files if SECRET.encode() in file.read_bytes()]


def test_an_alert_is_said_posted_and_changes_the_exit_status(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = RunReport((MANY_FAIL,))
    began_at, run_id = one_run(folder, report)
    with webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        assert finish_run(folder, report, began_at=began_at) is ExitCode.ALERT_RAISED
    words = "explain: 6 of 100 labels failed (6%; 5% are allowed)"
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"alert: {words}\n")
    (posted,) = hook.posted
    assert posted["run"] == "My run"
    assert posted["alerts"] == [{"kind": "failures", "text": words}]
    assert posted["text"].splitlines()[0].startswith("Scopenote, My run: run, ")
    assert words in posted["text"]
    assert posted["record"]["run_id"] == run_id
    assert posted["record"]["summary"]["in_force"]["n"] == 0
    assert notes(folder) == ()
    assert files_with_the_secret(folder) == []


def test_without_an_alert_nobody_is_told(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = RunReport((FEW_FAIL,))
    began_at, _ = one_run(folder, report)
    with webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        found = finish_run(folder, report, began_at=began_at)
    assert found is ExitCode.FINISHED_WITH_FAILURES
    assert (hook.posted, capsys.readouterr().err) == ([], "")


def test_a_webhook_that_refuses_is_said_and_kept_and_fails_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = RunReport((MANY_FAIL,))
    began_at, _ = one_run(folder, report)
    with webhook((403,)) as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        assert finish_run(folder, report, began_at=began_at) is ExitCode.ALERT_RAISED
    said = f"the alert could not be posted to {VARIABLE}: it answered 403"
    assert capsys.readouterr().err.splitlines()[1:] == [said]
    assert notes(folder) == (said,)
    assert files_with_the_secret(folder) == []


def test_a_run_that_failed_is_posted_and_its_error_left_to_be_raised(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = StoreError("The disk is full.")
    with open_work(folder.path) as work:
        publish(work, folder.path)
    began_at, _ = one_run(folder, RunReport(()), error)
    with webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        assert finish_run(folder, None, began_at=began_at, error=error) is ExitCode.FAILED
    assert hook.posted[0]["alerts"] == [
        {"kind": "failed", "text": "the run failed: The disk is full."}
    ]
    assert hook.posted[0]["record"]["status"] == "failed"
    assert capsys.readouterr().err == ""


def test_a_run_that_could_not_even_be_recorded_is_posted_all_the_same(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_run(folder, RunReport((MANY_FAIL,)))  # an older one, whose alerts are not ours
    began_at = now()
    with webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        error = StoreError("The database is in use by another program.")
        finish_run(folder, None, began_at=began_at, error=error)
    (posted,) = hook.posted
    assert posted["record"] is None
    assert [alert["kind"] for alert in posted["alerts"]] == ["failed"]


def test_summaries_of_a_folder_have_one_key_with_prefect(tmp_path: Path) -> None:
    key = artifact_key(RunFolder(tmp_path / "Läufe von Gemma_2"))
    assert key.startswith("scopenote-l-ufe-von-gemma-2-")
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert key == artifact_key(RunFolder(tmp_path / "x" / ".." / "Läufe von Gemma_2"))
    assert key != artifact_key(RunFolder(tmp_path / "x" / "Läufe von Gemma_2"))


def test_what_is_posted_is_json_that_addresses_nobody(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = StageReport("explain", "labels", 1, failures={"<!channel> `x`": 9})
    error: Any = ValueError("<!here> come")
    began_at, _ = one_run(folder, RunReport((stage,)), error)
    with webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.address)
        finish_run(folder, None, began_at=began_at, error=error)
    text = hook.posted[0]["text"]
    assert "‹!here› come" in text
    assert not {"<", ">", "`"} & set(text)
    assert json.dumps(hook.posted[0])
