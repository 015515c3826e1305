"""The record of runs: who worked on this folder, when, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import uuid4

import duckdb

from .database import now
from .near_features import read_rows
from .run_summaries import REPORT, RunSummary

_UNFINISHED = "running"
NOTES = "notes"


def begin_run(
    connection: duckdb.DuckDBPyConnection,
    command: str,
    config: dict[str, Any],
    version: str,
    flow_run_id: str | None = None,
) -> str:
    """Records a run that starts now, and that older ones still marked as running have died."""
    connection.execute(
        "UPDATE runs SET status = 'interrupted', finished_at = ? WHERE status = ?",
        [now(), _UNFINISHED],
    )
    run_id = uuid4().hex[:12]
    connection.execute(
        "INSERT INTO runs (run_id, command, started_at, status, config, version, flow_run_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [run_id, command, now(), _UNFINISHED, json.dumps(config), version, flow_run_id],
    )
    return run_id


def end_run(
    connection: duckdb.DuckDBPyConnection, run_id: str, status: str, summary: dict[str, Any]
) -> None:
    """Records how a run ended: `done` or `failed`, and what it did."""
    connection.execute(
        "UPDATE runs SET finished_at = ?, status = ?, summary = ? WHERE run_id = ?",
        [now(), status, json.dumps(summary), run_id],
    )


def flow_runs_without_an_end(connection: duckdb.DuckDBPyConnection, n: int) -> tuple[str, ...]:
    """The flow runs of invocations that did not record their own end, the last so many.

    Whoever asks holds the folder's lock, so that none of them is still at work.
    """
    rows = connection.execute(
        """
        SELECT flow_run_id FROM runs
        WHERE flow_run_id IS NOT NULL AND status IN ('running', 'interrupted')
        ORDER BY started_at DESC LIMIT $n
        """,
        {"n": n},
    ).fetchall()
    return tuple(flow_run_id for (flow_run_id,) in rows)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One invocation that worked on a run's folder.

    Attributes:
        command: what was given, such as `score`.
        status: `running`, `done`, `failed` or `interrupted`.
        version: of Scopenote.
        stages: what it did, as `flows/reports.py` has it; empty where it was killed.
        summary: what it changed; None where it was stopped, killed, or of an older version.
        notes: what was found out after its end, a sentence each.
        flow_run_id: what it was at a Prefect server; None where that is not known.
    """

    run_id: str
    command: str | None
    started_at: datetime | None
    finished_at: datetime | None
    status: str | None
    version: str | None
    stages: tuple[dict[str, Any], ...]
    summary: RunSummary | None = None
    notes: tuple[str, ...] = ()
    flow_run_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**named, "summary": None if self.summary is None else self.summary.as_dict()}


def read_runs(
    connection: duckdb.DuckDBPyConnection, n: int, skip: int = 0
) -> tuple[RunRecord, ...]:
    """The last so many invocations, the latest first, without these many before them."""
    return _read(connection, "true", n, skip)


def count_runs(connection: duckdb.DuckDBPyConnection) -> int:
    """How many invocations are on record."""
    rows = connection.execute("SELECT count(*) FROM runs").fetchall()
    return int(rows[0][0])


def read_run(connection: duckdb.DuckDBPyConnection, run_id: str) -> RunRecord | None:
    """One invocation; None where there is none of this id."""
    rows = read_rows(connection, "SELECT * FROM runs WHERE run_id = $1", [run_id])
    return _record(rows[0]) if rows else None


def read_last_config(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The configuration that the last run left which had one, as resolved; empty: none did."""
    rows = connection.execute(
        "SELECT config FROM runs WHERE config IS NOT NULL ORDER BY started_at DESC, run_id"
    ).fetchall()
    configs = (json.loads(config) for (config,) in rows)
    return next((config for config in configs if config), {})


def read_run_config(connection: duckdb.DuckDBPyConnection, run_id: str) -> dict[str, Any] | None:
    """The settings that an invocation worked with; None where they are not on record."""
    rows = connection.execute("SELECT config FROM runs WHERE run_id = ?", [run_id]).fetchall()
    found: dict[str, Any] | None = json.loads(rows[0][0] or "null") if rows else None
    return found


def read_last_ended(connection: duckdb.DuckDBPyConnection) -> RunRecord | None:
    """The latest invocation that left a summary; None where none did."""
    return next(iter(_read(connection, f"json_exists(summary, '$.{REPORT}')", 1)), None)


def add_note(connection: duckdb.DuckDBPyConnection, run_id: str, note: str) -> None:
    """Adds a sentence to what is known of a run that has ended."""
    rows = connection.execute("SELECT summary FROM runs WHERE run_id = ?", [run_id]).fetchall()
    content = json.loads(rows[0][0] or "{}") if rows else {}
    content[NOTES] = [*content.get(NOTES, ()), note]
    connection.execute(
        "UPDATE runs SET summary = ? WHERE run_id = ?", [json.dumps(content), run_id]
    )


def _read(
    connection: duckdb.DuckDBPyConnection, condition: str, n: int, skip: int = 0
) -> tuple[RunRecord, ...]:
    # All columns, by name: a run of an older version lacks some.
    rows = read_rows(
        connection,
        f"SELECT * FROM runs WHERE {condition} ORDER BY started_at DESC, run_id LIMIT $1 OFFSET $2",
        [n, skip],
    )
    return tuple(map(_record, rows))


def _record(row: dict[str, Any]) -> RunRecord:
    content = json.loads(row["summary"] or "{}")
    report = content.get(REPORT)
    return RunRecord(
        run_id=row["run_id"],
        command=row["command"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        status=row["status"],
        version=row["version"],
        stages=tuple(content.get("stages", ())),
        summary=None if report is None else RunSummary.from_dict(report),
        notes=tuple(content.get(NOTES, ())),
        flow_run_id=row.get("flow_run_id"),
    )
