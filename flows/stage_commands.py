"""What the commands that work have in common: the folder, the flow, and what is said at its end."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from .model_commands import in_usd
from .terminal import complain, print_page, program
from .working import configured_run, published, run_folder, working

if TYPE_CHECKING:
    from ..store.errors import ExitCode
    from ..store.run_folder import RunFolder
    from .config import Config
    from .progress import Progress
    from .reports import RunReport, StageReport


def run_whole_job(
    command: str,
    out: Path,
    config: Config,
    again: list[str],
    use_own_server: bool,
    allow_mismatch: bool = False,
    budget: str | None = None,
) -> NoReturn:
    """Collects, explains and scores in a folder, and shows how it ended.

    Args:
        command: that is said to hold the folder.
        out: the folder.
        config: of the run.
        again: the words of the command that goes on after a stop.
        use_own_server: report to the user's own Prefect server.
        allow_mismatch: go on also where an SAE seems to read another tensor.
        budget: as it was typed.
    """
    budget_usd = in_usd(budget)
    if budget is not None:
        again = [*again, "--budget-usd", budget]
    folder = run_folder(out, config)
    with working(folder, command, again, use_own_server) as progress:
        from .label_corpus import label_corpus

        def work() -> RunReport:
            return label_corpus(config, folder, progress, allow_mismatch, budget_usd)

        report, status = _finished(work, folder, use_own_server)
    _print_report(report)
    _print_ending(folder, report)
    raise typer.Exit(status)


def run_stage(
    command: str,
    work: Callable[[Config, RunFolder, Progress], StageReport],
    run: Path,
    config_file: Path | None,
    use_own_server: bool,
) -> NoReturn:
    """Does one stage of a run."""
    from .reports import RunReport

    config, folder = configured_run(run, config_file)
    with working(folder, command, [command, str(run)], use_own_server) as progress:
        report, status = _finished(
            lambda: RunReport((work(config, folder, progress),)), folder, use_own_server
        )
    _print_report(report)
    raise typer.Exit(status)


def run_shard(
    run: Path, shard_text: str, config_file: Path | None, allow_mismatch: bool, use_own_server: bool
) -> NoReturn:
    """Collects one shard beside others that do the same, on this machine or elsewhere."""
    from ..extract.shards import Shard
    from .reports import RunReport

    shard = Shard.parse(shard_text)
    config, folder = configured_run(run, config_file)
    own = folder.shard(f"{shard.number}-of-{shard.count}")
    again = ["collect", str(run), "--shard", shard_text]
    with working(own, shlex.join(again), again, use_own_server) as progress:
        from .collect_contexts import collect_shard

        report = RunReport((collect_shard(config, folder, shard, progress, allow_mismatch),))
    _print_report(report)
    raise typer.Exit(report.exit_code)


def _finished(
    work: Callable[[], RunReport], folder: RunFolder, to_prefect: bool
) -> tuple[RunReport, ExitCode]:
    """Does the work, and tells of it however it ended."""
    from ..store.database import now
    from .finish_run import finish_run

    began_at = now()
    try:
        report = work()
    except Exception as error:
        finish_run(folder, None, began_at=began_at, error=error, to_prefect=to_prefect)
        raise
    return report, finish_run(folder, report, began_at=began_at, to_prefect=to_prefect)


def _print_report(report: RunReport) -> None:
    for stage in report.stages:
        for line in stage.remarks():
            complain(line)


def _print_ending(folder: RunFolder, report: RunReport) -> None:
    from ..store.status import read_extremes, read_model_labels, read_status
    from .summary import render_ending

    with published(folder.path) as (_, store):
        found = read_status(store.connection, folder.database)
        extremes = read_extremes(store.connection)
        by_models = read_model_labels(store.connection)
    if report.did_nothing:
        found = replace(found, last=None)
    print_page(render_ending(found, extremes, folder, program(), by_models))
