"""The record of runs: who worked on this folder, when, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import uuid4

import duckdb

from .database import now
from .run_summaries import REPORT, RunSummary

_UNFINISHED = "running"


def begin_run(
    connection: duckdb.DuckDBPyConnection, command: str, config: dict[str, Any], version: str
) -> str:
    """Records a run that starts now, and that older ones still marked as running have died."""
    connection.execute(
        "UPDATE runs SET status = 'interrupted', finished_at = ? WHERE status = ?",
        [now(), _UNFINISHED],
    )
    run_id = uuid4().hex[:12]
    connection.execute(
        "INSERT INTO runs (run_id, command, started_at, status, config, version) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [run_id, command, now(), _UNFINISHED, json.dumps(config), version],
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


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One invocation that worked on a run's folder.

    Attributes:
        command: what was given, such as `score`.
        status: `running`, `done`, `failed` or `interrupted`.
        version: of Scopenote.
        stages: what it did, as `flows/reports.py` has it; empty where it was killed.
        summary: what it changed; None where it was stopped, killed, or of an older version.
    """

    run_id: str
    command: str | None
    started_at: datetime | None
    finished_at: datetime | None
    status: str | None
    version: str | None
    stages: tuple[dict[str, Any], ...]
    summary: RunSummary | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**named, "summary": None if self.summary is None else self.summary.as_dict()}


def read_runs(connection: duckdb.DuckDBPyConnection, n: int) -> tuple[RunRecord, ...]:
    """The last so many invocations, the latest first."""
    rows = connection.execute(
        """
        SELECT run_id, command, started_at, finished_at, status, version, summary FROM runs
        ORDER BY started_at DESC, run_id LIMIT $n
        """,
        {"n": n},
    ).fetchall()
    return tuple(_record(*row[:-1], json.loads(row[-1] or "{}")) for row in rows)


def _record(*facts_and_content: Any) -> RunRecord:
    *facts, content = facts_and_content
    report = content.get(REPORT)
    return RunRecord(
        *facts,
        stages=tuple(content.get("stages", ())),
        summary=None if report is None else RunSummary.from_dict(report),
    )
