"""The record of runs: who worked on this folder, when, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import duckdb

from .database import now

_UNFINISHED = "running"


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
    """

    run_id: str
    command: str | None
    started_at: datetime | None
    finished_at: datetime | None
    status: str | None
    version: str | None
    stages: tuple[dict[str, Any], ...]


def read_runs(connection: duckdb.DuckDBPyConnection, n: int) -> tuple[RunRecord, ...]:
    """The last so many invocations, the latest first."""
    rows = connection.execute(
        """
        SELECT run_id, command, started_at, finished_at, status, version, summary FROM runs
        ORDER BY started_at DESC, run_id LIMIT $n
        """,
        {"n": n},
    ).fetchall()
    return tuple(
        RunRecord(
            run_id,
            command,
            started_at,
            finished_at,
            status,
            version,
            tuple(json.loads(summary or "{}").get("stages", ())),
        )
        for run_id, command, started_at, finished_at, status, version, summary in rows
    )
