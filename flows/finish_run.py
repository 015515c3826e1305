"""After a run: whoever is to know of it is told, and the exit status follows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING

from ..store.database import now, open_store, open_work, publish
from ..store.errors import BudgetSpent, ExitCode, ScopenoteError, StoreError
from ..store.run_summaries import Alert
from ..store.runs import add_note, read_last_ended
from .alerts import FAILED
from .run_message import alert_message, markdown_page
from .terminal import complain
from .webhook import VARIABLE, post_to, webhook_address

if TYPE_CHECKING:
    from ..store.run_folder import RunFolder
    from ..store.runs import RunRecord
    from .reports import RunReport


def finished(
    work: Callable[[], RunReport], folder: RunFolder, to_prefect: bool
) -> tuple[RunReport, ExitCode]:
    """Does a run's work and tells of it, however it ends; what it raises is raised again.

    Args:
        work: the run.
        folder: of the run, whose lock is held.
        to_prefect: as for `finish_run`.
    """
    began_at = now()
    try:
        report = work()
    except Exception as error:
        finish_run(folder, None, began_at=began_at, error=error, to_prefect=to_prefect)
        raise
    return report, finish_run(folder, report, began_at=began_at, to_prefect=to_prefect)


def finish_run(
    folder: RunFolder,
    report: RunReport | None,
    *,
    began_at: datetime,
    error: Exception | None = None,
    to_prefect: bool = False,
) -> ExitCode:
    """Tells of a run that has ended, and gives its exit status. The folder's lock must be held.

    Its alerts are said on standard error and, where the environment names a webhook, posted
    there. Nothing in here fails the run: what cannot be delivered is said and kept in its notes.

    Args:
        folder: of the run.
        report: what it did; None where it failed.
        began_at: a moment before the run began, to know its record from an older run's.
        error: with which it failed; it is the caller's to raise again.
        to_prefect: its summary becomes an artifact at a Prefect server that stays.
    """
    record = _record(folder, began_at)
    alerts = _alerts(record, error)
    notes: list[str] = []
    for alert in alerts:
        # That it failed is said by whoever raises the error again.
        if error is None or alert.kind != FAILED:
            complain(f"alert: {alert.text}")
    if alerts and (address := webhook_address()) is not None:
        reason = post_to(address, alert_message(folder.path.resolve().name, alerts, record))
        if reason is not None:
            notes.append(f"the alert could not be posted to {VARIABLE}: {reason}")
    if to_prefect and record is not None and (reason := _show_in_prefect(folder, record)):
        notes.append(f"Prefect's server did not take the summary: {reason}")
    for note in notes:
        complain(note)
    if notes and record is not None:
        _keep(folder, record.run_id, notes)
    if error is not None:
        return error.exit_code if isinstance(error, ScopenoteError) else ExitCode.FAILED
    if alerts:
        return ExitCode.ALERT_RAISED
    return ExitCode.DONE if report is None else report.exit_code


def _record(folder: RunFolder, began_at: datetime) -> RunRecord | None:
    """The record of the run that has just ended; None where it could not be written."""
    try:
        with open_store(folder.path) as store:
            record = read_last_ended(store.connection)
    except StoreError:
        # A run that failed before there was anything to read.
        return None
    if record is None or record.started_at is None or record.started_at < began_at:
        return None
    return record


def _alerts(record: RunRecord | None, error: Exception | None) -> tuple[Alert, ...]:
    if record is not None and record.summary is not None:
        return record.summary.alerts
    if error is None or isinstance(error, BudgetSpent):
        return ()
    from .run_summary import in_a_line

    return (Alert(FAILED, f"the run failed: {in_a_line(error)}"),)


def _keep(folder: RunFolder, run_id: str, notes: list[str]) -> None:
    try:
        with open_work(folder.path) as work:
            for note in notes:
                add_note(work, run_id, note)
            publish(work, folder.path)
    except (StoreError, OSError) as error:
        complain(f"this could not be kept: {error}")


def artifact_key(folder: RunFolder) -> str:
    """What Prefect keeps the summaries of a folder's runs under: small letters, digits, dashes."""
    path = folder.path.resolve()
    name = "".join(each if each.isascii() and each.isalnum() else "-" for each in path.name.lower())
    return f"scopenote-{name.strip('-') or 'run'}-{sha256(str(path).encode()).hexdigest()[:8]}"


def _show_in_prefect(folder: RunFolder, record: RunRecord) -> str | None:
    """Makes the artifact, of the flow run if there is one; why it could not be made, or None."""
    from uuid import UUID

    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate
    from prefect.runtime import flow_run

    # Stages are flows within the run's; of a run that has ended its record knows which it was.
    flow_run_id = flow_run.id or record.flow_run_id
    artifact = ArtifactCreate(
        key=artifact_key(folder),
        type="markdown",
        description=f"The last run in {folder.path.resolve()}",
        data=markdown_page(folder.path.resolve().name, record),
        flow_run_id=None if flow_run_id is None else UUID(flow_run_id),
    )
    try:
        with get_client(sync_client=True) as client:
            client.create_artifact(artifact)
    except (HTTPError, RuntimeError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None
