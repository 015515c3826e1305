"""What the commands that work have in common: the folder, the flow, and what is said at its end."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from ..store.errors import UserMistake
from .model_commands import in_usd
from .terminal import complain, print_page, program
from .working import configured_run, published, run_folder, working

if TYPE_CHECKING:
    from ..store.run_folder import RunFolder
    from .config import Config
    from .progress import Progress
    from .reports import RunReport, StageReport


RunnerName = Annotated[
    Literal["thread", "dask"] | None,
    typer.Option(
        "--runner",
        help="Where tasks work: in threads of this process or on Dask's workers; otherwise as "
        "[runner] says.",
    ),
]


def run_whole_job(
    command: str,
    out: Path,
    config: Config,
    again: list[str],
    use_own_server: bool,
    allow_mismatch: bool = False,
    budget: str | None = None,
    runner: RunnerName = None,
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
        runner: where tasks work, if not where the configuration says.
    """
    budget_usd = in_usd(budget)
    if budget is not None:
        again = [*again, "--budget-usd", budget]
    again += _typed(runner)
    folder = run_folder(out, config)
    with working(folder, command, again, use_own_server) as progress:
        from .finish_run import finished
        from .label_corpus import label_corpus

        settings = with_runner(config, runner)

        def work() -> RunReport:
            return label_corpus(settings, folder, progress, allow_mismatch, budget_usd)

        report, status = finished(work, folder, use_own_server)
    _print_report(report)
    _print_ending(folder, report)
    raise typer.Exit(status)


def run_stage(
    command: str,
    work: Callable[[Config, RunFolder, Progress], StageReport],
    run: Path,
    config_file: Path | None,
    use_own_server: bool,
    runner: RunnerName = None,
) -> NoReturn:
    """Does one stage of a run; its tasks work where the configuration or `runner` says."""
    from .reports import RunReport

    config, folder = configured_run(run, config_file)
    again = [command, str(run), *_typed(runner)]
    settings = with_runner(config, runner)
    with working(folder, command, again, use_own_server) as progress:
        from .finish_run import finished

        report, status = finished(
            lambda: RunReport((work(settings, folder, progress),)), folder, use_own_server
        )
    _print_report(report)
    raise typer.Exit(status)


def run_shard(
    run: Path,
    shard_text: str,
    config_file: Path | None,
    allow_mismatch: bool,
    use_own_server: bool,
    runner: RunnerName = None,
) -> NoReturn:
    """Collects one shard beside others that do the same, on this machine or elsewhere."""
    if runner == "dask":
        raise UserMistake(
            "`--shard` and `--runner dask` are two ways to collect on several machines.",
            mend="leave out one of them",
        )
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


def with_runner(config: Config, runner: RunnerName) -> Config:
    """The configuration with its tasks at work there; as it is where None is given."""
    if runner is None:
        return config
    return config.model_copy(update={"runner": config.runner.model_copy(update={"kind": runner})})


def _typed(runner: RunnerName) -> list[str]:
    return [] if runner is None else ["--runner", runner]


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
