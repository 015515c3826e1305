"""When somebody should look at a run.

Chosen for a person on call: what happens by night and is not seen by day. A stored failure alone
is no alert, nor is a budget that was spent on what it was given for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ..store.errors import BudgetSpent
from ..store.run_summaries import Alert, RunSummary

if TYPE_CHECKING:
    from ..store.batch_record import Batch
    from .alert_settings import AlertSection
    from .reports import RunReport

FAILED = "failed"
"""The kind of alert that a run raises by failing; all others are by their own words."""

# Providers answer a batch within a day, or end it.
_LONGEST_BATCH = timedelta(hours=26)


def find_alerts(
    summary: RunSummary,
    report: RunReport,
    settings: AlertSection,
    error: Exception | None,
    batches: Sequence[Batch],
    at: datetime,
) -> tuple[Alert, ...]:
    """What is to be looked at, the worst first.

    Args:
        summary: what the run changed.
        report: what it did, stage by stage.
        settings: when an alert is raised.
        error: with which the run ended, if it did.
        batches: those under way.
        at: the time.
    """
    return (
        *_failed(summary, report, error),
        *_stalled(summary, report),
        *_drifted(summary, settings),
        *_fallen(summary, settings),
        *_too_many_failures(summary, report, settings),
        *_late(batches, at),
    )


def _failed(summary: RunSummary, report: RunReport, error: Exception | None) -> Iterator[Alert]:
    if error is None:
        return
    if not isinstance(error, BudgetSpent):
        yield Alert(FAILED, f"the run failed: {summary.error}")
    elif not _did_anything(report) and not any(each.n_calls for each in summary.cost):
        yield Alert("stalled", f"nothing could be done: {summary.error}")


def _stalled(summary: RunSummary, report: RunReport) -> Iterator[Alert]:
    # Calls are on record: the next run goes on from there, also where no label was finished.
    if any(each.n_calls for each in summary.cost):
        return
    if any(stage.is_spent for stage in report.stages) and not _did_anything(report):
        n_left = max(stage.left for stage in report.stages)
        left = f", and {n_left:,} features are left" if n_left else ""
        yield Alert("stalled", f"what it may spend was spent before anything was done{left}")


def _did_anything(report: RunReport) -> bool:
    """Whether labels were made or scored: text alone is collected without cost."""
    return any(stage.done for stage in report.stages if stage.stage != "collect")


def _drifted(summary: RunSummary, settings: AlertSection) -> Iterator[Alert]:
    for judge in summary.gold if settings.drift else ():
        if judge.drift is not None:
            by = "" if judge.change is None else f" by {judge.change:+.2f}"
            yield Alert(
                "drift",
                f"{judge.simulator} is not the judge it was: on gold items {judge.drift}{by} "
                f"({_runs(judge.n_runs)})",
            )


def _fallen(summary: RunSummary, settings: AlertSection) -> Iterator[Alert]:
    for each in summary.scores:
        pairs = each.pairs
        if pairs is None or pairs.low is None or pairs.high is None:
            continue
        if pairs.high < -settings.score_drop:
            yield Alert(
                "score_drop",
                f"scores by {each.simulator} have fallen by {-pairs.value:.3f} on average "
                f"({-pairs.high:.3f} to {-pairs.low:.3f}) over {pairs.n:,} features that were "
                "scored before",
            )


def _too_many_failures(
    summary: RunSummary, report: RunReport, settings: AlertSection
) -> Iterator[Alert]:
    for stage in report.stages:
        if stage.stage == "import":
            continue  # whoever brings in a file is there, and is told of each kind of row
        n_failed, n_tried, what = stage.n_failed, stage.done + stage.n_failed, stage.unit
        if stage.stage == "score":
            # What fails there is a window, not a label.
            n_failed, n_tried, what = summary.windows.n_failed, summary.windows.n, "windows"
        if n_failed > settings.failed_share * n_tried:
            yield Alert(
                "failures",
                f"{stage.stage}: {n_failed:,} of {n_tried:,} {what} failed "
                f"({n_failed / n_tried:.0%}; {settings.failed_share:.0%} are allowed)",
            )


def _late(batches: Sequence[Batch], at: datetime) -> Iterator[Alert]:
    late = [
        batch.submitted_at
        for batch in batches
        if batch.submitted_at is not None and at - batch.submitted_at > _LONGEST_BATCH
    ]
    if late:
        hours = (at - min(late)).total_seconds() / 3600
        yield Alert(
            "stalled",
            f"{len(late):,} batch{'es have' if len(late) > 1 else ' has'} been at the provider for "
            f"up to {hours:.0f} hours, and should be done within 24",
        )


def _runs(n: int) -> str:
    return f"{n:,} earlier run{'' if n == 1 else 's'}"
