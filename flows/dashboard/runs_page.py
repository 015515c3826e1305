"""The runs: what each invocation on the folder did, changed and cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from ...label.pricing import in_dollars
from ...store.errors import UserMistake
from ...store.run_summaries import Alert, ScoreComparison
from ...store.runs import RunRecord, count_runs, read_run, read_run_config, read_runs
from ..run_sections import deed, earlier_runs, sections_of, took
from .pages import Connection, render

router = APIRouter()
RUNS_A_PAGE = 25


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run as a line of a table.

    Attributes:
        took: how long it took, in words.
        deeds: what its stages did, a phrase each.
        n_failed: labels, windows and calls that failed.
        usd: what its calls cost, in words; empty where it made none.
        scores: of labels in force, by judge, beside those before it.
    """

    record: RunRecord
    took: str
    deeds: tuple[str, ...]
    n_failed: int
    usd: str
    scores: tuple[ScoreComparison, ...]
    alerts: tuple[Alert, ...]


def run_line(record: RunRecord) -> RunLine:
    """A run's line."""
    summary = record.summary
    n_failed = sum(sum(stage.get("failures", {}).values()) for stage in record.stages)
    usd = ""
    if summary is not None:
        n_failed += sum(summary.call_failures.values())
        if any(each.n_calls for each in summary.cost):
            unknown = "+" if any(each.n_unpriced for each in summary.cost) else ""
            usd = "unknown" if summary.usd is None else in_dollars(summary.usd) + unknown
    return RunLine(
        record,
        took(record),
        tuple(f"{stage['stage']}: {deed(stage)}" for stage in record.stages if stage["done"]),
        n_failed,
        usd,
        () if summary is None else tuple(each for each in summary.scores if each.now.n),
        () if summary is None else summary.alerts,
    )


class RunsQuery(BaseModel):
    """What the list's address may ask for."""

    model_config = ConfigDict(extra="forbid")

    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1


@router.get("/runs")
def runs(
    request: Request, connection: Connection, asked: Annotated[RunsQuery, Query()]
) -> HTMLResponse:
    """All runs, the latest first."""
    n = count_runs(connection)
    records = read_runs(connection, RUNS_A_PAGE, RUNS_A_PAGE * (asked.page - 1))
    return render(
        request,
        "runs.html",
        title="Runs",
        n=n,
        n_pages=max(1, -(-n // RUNS_A_PAGE)),
        page=asked.page,
        lines=[run_line(record) for record in records],
    )


@router.get("/runs/{run_id}")
def run(request: Request, connection: Connection, run_id: str) -> HTMLResponse:
    """One run in full."""
    record = read_run(connection, run_id)
    if record is None:
        raise UserMistake(
            "There is no such run.",
            found=run_id[:200],
            mend="see all of them on the page Runs, or with: scopenote runs RUN",
        )
    config = read_run_config(connection, run_id)
    return render(
        request,
        "run.html",
        title=f"Run {run_id}",
        record=record,
        line=run_line(record),
        earlier=None if record.summary is None else earlier_runs(record.summary),
        sections=list(sections_of(record)),
        config=_lines(config),
    )


def _lines(config: dict[str, Any] | None) -> list[str]:
    if not config:
        return []
    return json.dumps(config, indent=2, ensure_ascii=False).splitlines()
