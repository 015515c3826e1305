"""The flow that a deployment runs: `scopenote run`, in the process that a Prefect worker starts.

Its entrypoint is `scopenote.flows.scheduled_run.scheduled_run`, its parameters are JSON. Two runs
of one folder never overlap: the folder's lock is the kernel's, and is free as soon as whoever
held it is dead, while a limit of Prefect's stays taken until its lease ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Failed

from ..store.errors import ExitCode, RunFolderBusy, ScopenoteError
from ..store.run_folder import RunFolder
from .config import load_config
from .dead_runs import alive, declare_dead_runs
from .finish_run import finished
from .leaving import leaving_when_told
from .missed_firings import skip_what_was_due
from .model_commands import in_usd
from .prefect_home import without_heartbeats
from .progress import Progress
from .reports import RunReport
from .terminal import complain
from .working import run_folder

FLOW_NAME = "scopenote"
ENTRYPOINT = "scopenote.flows.scheduled_run.scheduled_run"
_WAIT_SECONDS = 1.0


# What a run came to is in its folder: Prefect keeps nothing of it.
@flow(name=FLOW_NAME, persist_result=False)
def scheduled_run(
    config: str,
    run: str,
    when_busy: Literal["wait", "skip"] = "skip",
    budget_usd: str | None = None,
) -> State[None]:
    """Labels what is not labelled yet.

    Args:
        config: path of a configuration.
        run: path of the run's folder, made if there is none.
        when_busy: while another process works on the folder, wait for it, or skip this time.
        budget_usd: as `--budget-usd` of `scopenote run`.
    """
    with leaving_when_told(), Progress() as progress:
        try:
            return _run(Path(config), Path(run), when_busy == "wait", budget_usd, progress)
        except RunFolderBusy as busy:
            progress.say(f"Skipped: {busy}")
            return Completed(name="Skipped", message=f"{busy.what} {busy.found or ''}".strip())
        except ScopenoteError as error:
            # A message, not a traceback: it says what a person can do.
            complain(f"Error: {error}")
            return Failed(message=str(error))
        except TerminationSignal:
            complain("Stopped. Everything finished so far is kept; the next run goes on from it.")
            raise


def _run(
    config_file: Path, path: Path, may_wait: bool, budget_usd: str | None, progress: Progress
) -> State[None]:
    config = load_config(config_file)
    budget = in_usd(budget_usd)
    folder = RunFolder(path).create()
    with alive(folder), _locked(folder, may_wait, progress), without_heartbeats():
        # Not before: what is changed in it must not change under whoever is at work.
        folder = run_folder(path, config)
        for line in declare_dead_runs(folder):
            progress.say(line)
        if n_due := skip_what_was_due():
            progress.say(f"{n_due:,} more that were due are done with this one")
        # Not above: it takes seconds to import, which a run that is skipped does without.
        from .label_corpus import label_corpus

        def work() -> RunReport:
            return label_corpus(config, folder, progress, budget_usd=budget)

        report, code = finished(work, folder, to_prefect=True)
    return _ending(report, code, progress)


@contextmanager
def _locked(folder: RunFolder, may_wait: bool, progress: Progress) -> Iterator[None]:
    """The folder, for us alone.

    Raises:
        RunFolderBusy: another process has it, and we may not wait.
    """
    with ExitStack() as stack:
        has_said = False
        while True:
            try:
                stack.enter_context(folder.lock("scopenote, scheduled"))
                break
            except RunFolderBusy as busy:
                if not may_wait:
                    raise
                if not has_said:
                    progress.say(f"waiting for {busy.found}, which works on {folder.path}")
                    has_said = True
            time.sleep(_WAIT_SECONDS)
        yield


def _ending(report: RunReport, code: ExitCode, progress: Progress) -> State[None]:
    lines = [line for stage in report.stages for line in stage.remarks()]
    for line in lines:
        progress.say(line)
    done = [f"{stage.stage}: {stage.done:,} {stage.unit}" for stage in report.stages if stage.done]
    message = "; ".join([*done, *lines]) or "nothing to do"
    if code == ExitCode.ALERT_RAISED:
        return Completed(name="Completed with alerts", message=message)
    if report.n_failed:
        return Completed(
            name="Completed with failures",
            message=f"{report.n_failed:,} failures are stored beside the results. {message}",
        )
    return Completed(message=message)
