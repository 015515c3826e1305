"""A run's database with labels and scores that a test sets and changes, a run at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
from scopenote.flows.alert_settings import AlertSection
from scopenote.flows.reports import RunReport, StageReport
from scopenote.flows.run_summary import summarize_run
from scopenote.store.label_history import append_history
from scopenote.store.run_summaries import REPORT, RunSummary
from scopenote.store.runs import begin_run, end_run
from scopenote.store.schema import MIGRATIONS

SAE, LOOKUP, JUDGE = "toy/1-res-1k", "token_lookup", "chat/m"
DONE = StageReport("score", "labels", 10, seconds=3.0)


def make_history() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    return connection


def begin(connection: duckdb.DuckDBPyConnection, command: str = "run") -> str:
    return begin_run(connection, command, {}, "0.1.0")


def end(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    report: RunReport | None = None,
    error: Exception | None = None,
    **settings: Any,
) -> RunSummary:
    """Ends a run as `recorded_run` does; what it says it changed."""
    report = report or RunReport((DONE,))
    summary = summarize_run(connection, run_id, report, AlertSection(**settings), error)
    append_history(connection, run_id)
    status = "done" if error is None else "failed"
    end_run(connection, run_id, status, {**report.as_dict(), REPORT: summary.as_dict()})
    return summary


def label(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    features: Sequence[int],
    name: str = "a",
    explainer: str = "highlighted",
    reason: str | None = None,
) -> None:
    """Has an explainer label features, or fail to; ids sort by `name`."""
    status, text = ("done", "words") if reason is None else ("failed", None)
    connection.executemany(
        "INSERT INTO labels (label_id, sae_id, feature, text, explainer, model, draw, source, "
        "status, reason, created_at, run_id) VALUES (?, ?, ?, ?, ?, 'm', 0, 'auto', ?, ?, ?, ?)",
        [
            [f"{name}{f}", SAE, f, text, explainer, status, reason, datetime.now(UTC), run_id]
            for f in features
        ],
    )


def score(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    values: Mapping[int, float | str],
    name: str = "a",
    simulator: str = JUDGE,
    chosen: float = 0.5,
) -> None:
    """Scores labels of features; a string is why there is no score.

    The best on `select` is in force: `chosen` is what they have there.
    """
    rows = []
    for feature, value in values.items():
        number, reason = (None, value) if isinstance(value, str) else (value, None)
        for split, each, why in (("score", number, reason), ("select", chosen, None)):
            row = [f"{name}{feature}", "simulation", simulator, "correlation", split, each, why]
            rows.append([*row, run_id])
    connection.executemany(
        "INSERT OR REPLACE INTO scores (label_id, scorer, simulator, metric, split, value, reason, "
        "run_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def call(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    usd: str | None,
    error: str | None = None,
    purpose: str = "explain",
    ago: timedelta = timedelta(),
) -> None:
    connection.execute(
        "INSERT INTO calls (request_hash, purpose, model, usd, error, created_at) "
        "VALUES (?, ?, 'm', ?, ?, ?)",
        [name, purpose, None if usd is None else Decimal(usd), error, datetime.now(UTC) - ago],
    )
