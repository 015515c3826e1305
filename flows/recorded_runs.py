"""Writes each run into the database: when it began, with what configuration, how it ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from decimal import Decimal

import duckdb

from .. import __version__
from ..store.absorb import absorb_inbox, remove_absorbed
from ..store.current_features import refresh_current_features
from ..store.database import open_work, publish
from ..store.errors import StoreError
from ..store.facts import transaction
from ..store.label_history import append_history
from ..store.run_folder import RunFolder
from ..store.run_summaries import REPORT
from ..store.runs import begin_run, end_run
from .ask_job import Asked
from .config import Config
from .reports import RunReport, StageReport
from .run_summary import summarize_run
from .spending import Spending, begin_spending


@dataclass(slots=True)
class RecordedRun:
    """A run under way, what it may spend, and what it has done so far.

    Attributes:
        asked, rated: what came of asking models for labels and for ratings, in all rounds.
    """

    run_id: str
    spending: Spending = field(default_factory=Spending)
    asked: Asked = field(default_factory=Asked)
    rated: Asked = field(default_factory=Asked)
    stages: list[StageReport] = field(default_factory=list)

    def add(self, stage: StageReport) -> StageReport:
        """Notes what a stage did; where it went in rounds, what it did in all of them."""
        for place, before in enumerate(self.stages):
            if before.stage == stage.stage:
                self.stages[place] = replace(stage, seconds=before.seconds + stage.seconds)
                return self.stages[place]
        self.stages.append(stage)
        return stage

    @property
    def report(self) -> RunReport:
        """What it has done so far."""
        return RunReport(tuple(self.stages))


_under_way: ContextVar[RecordedRun | None] = ContextVar("_under_way", default=None)


@contextlib.contextmanager
def recorded_run(
    command: str, config: Config, folder: RunFolder, budget_usd: Decimal | None = None
) -> Iterator[RecordedRun]:
    """Within the block a run is under way; a stage called by a whole run is part of that one.

    Args:
        command: that was given.
        config: of the run.
        folder: of the run.
        budget_usd: what all invocations together may have cost at its end.
    """
    outer = _under_way.get()
    if outer is not None:
        yield outer
        return
    settings = config.model_dump(mode="json")
    with open_work(folder.path) as work:
        run = RecordedRun(
            begin_run(work, command, settings, __version__, _flow_run_id()),
            begin_spending(work, config.budget, budget_usd),
        )
        absorb_inbox(work, folder.inbox)
    token = _under_way.set(run)
    try:
        yield run
    except Exception as error:
        # The disk may be full or the database gone: that must not hide what came first.
        with contextlib.suppress(StoreError, OSError, duckdb.Error):
            _end("failed", run, config, folder, error)
        raise
    except BaseException:
        # Somebody wants it to stop now: what it changed, the next run will say.
        with contextlib.suppress(StoreError, OSError, duckdb.Error), open_work(folder.path) as work:
            end_run(work, run.run_id, "interrupted", run.report.as_dict())
        raise
    finally:
        _under_way.reset(token)
    _end("done", run, config, folder)


def _end(
    status: str,
    run: RecordedRun,
    config: Config,
    folder: RunFolder,
    error: Exception | None = None,
) -> None:
    """Records the end of a run together with what it changed, and gives readers all of it."""
    with open_work(folder.path) as work:
        if error is None:
            absorb_inbox(work, folder.inbox)
        with transaction(work):
            summary = summarize_run(work, run.run_id, run.report, config.alerts, error)
            append_history(work, run.run_id)
            content = {**run.report.as_dict(), REPORT: summary.as_dict()}
            end_run(work, run.run_id, status, content)
        refresh_current_features(work, whole=True)
        # Of a run that failed before it had collected anything there is nothing to read.
        if error is None or folder.database.exists():
            publish(work, folder.path)
        if error is None:
            remove_absorbed(work, folder.inbox)


def _flow_run_id() -> str | None:
    """The flow run that all of this is part of: what a page of Prefect's lists, and can cancel."""
    if "prefect" not in sys.modules:  # who has not loaded it runs no flow
        return None
    from prefect.runtime import flow_run

    return flow_run.root_flow_run_id or None
