"""The record of runs: who worked on this folder, when, and how it ended."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import duckdb

from .database import now

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
