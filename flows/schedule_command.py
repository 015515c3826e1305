"""`scopenote schedule`: a run that begins by itself, on a Prefect server."""

from __future__ import annotations

import os
import shlex
import time
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..store.errors import UserMistake
from .model_commands import BudgetUsd, in_usd
from .schedule_page import render_deployment, render_deployments
from .terminal import complain, print_json, print_page, program
from .timetable import Timetable, deployment_name

if TYPE_CHECKING:
    from .schedule_server import ScheduleServer

_SERVER_SECONDS = 120.0


class WhenBusy(StrEnum):
    """What a run does that finds its folder taken, as `--when-busy` takes it."""

    skip = "skip"
    wait = "wait"


def schedule(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="A configuration, or the folder of a run."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run's folder, if not named after CONFIG."),
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", help='When it runs: "0 2 * * *" is at two every night.')
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", help="Or how often: 90m, 6h, 1d; first after that.")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", metavar="ZONE", help="Whose clock --cron means; else UTC."),
    ] = None,
    when_busy: Annotated[
        WhenBusy,
        typer.Option("--when-busy", help="While another process works on RUN: skip, or wait."),
    ] = WhenBusy.skip,
    budget_usd: BudgetUsd = None,
    pool: Annotated[
        str, typer.Option("--pool", metavar="NAME", help="Prefect's work pool, made if missing.")
    ] = "scopenote",
    pause: Annotated[bool, typer.Option("--pause", help="Begin no more runs for now.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after --pause.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Forget the schedule.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Show all schedules of ours on the server.")
    ] = False,
    with_server: Annotated[
        bool,
        typer.Option("--with-server", help="Be server and worker, until Ctrl-C; on loopback."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, help="With --with-server: where; else the last, or any."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="With --list: as JSON.")] = False,
) -> None:
    """Have a run begin by itself, at set times."""
    timetable = Timetable.parse(cron, every, timezone)
    in_usd(budget_usd)
    _refuse_contradictions(
        {"--pause": pause, "--resume": resume, "--remove": remove, "--list": list_},
        {"--cron": cron, "--every": every, "--with-server": with_server or None},
    )
    if port is not None and not with_server:
        raise UserMistake("`--port` belongs to `--with-server`.", mend="add `--with-server`")
    os.environ["DO_NOT_TRACK"] = "1"
    if list_:
        _list(out or (_run_of(config) if config is not None else None), json)
        return
    if config is None:
        raise UserMistake("Which run?", expected="CONFIG", mend="see `scopenote schedule --help`")
    file, run = _config_file(config), (out or _run_of(config)).absolute()
    if pause or resume or remove:
        _change(run, pause, resume)
        return
    parameters = _parameters(file, run, when_busy, budget_usd)
    if with_server:
        _serve(run, parameters, timetable, pool, port)
    else:
        _deploy(run, parameters, timetable, pool)


def _refuse_contradictions(verbs: dict[str, bool], others: dict[str, Any]) -> None:
    given = [name for name, is_given in verbs.items() if is_given]
    if not given:
        return
    given += [name for name, value in others.items() if value is not None]
    if len(given) > 1:
        raise UserMistake(
            "These do not go together.",
            found=" and ".join(f"`{name}`" for name in given),
            expected=f"`{given[0]}` alone",
        )


def _config_file(config: Path) -> Path:
    from ..store.run_folder import RunFolder

    file = RunFolder.open_existing(config).config_file if config.is_dir() else config
    return file.absolute()


def _run_of(config: Path) -> Path:
    """The run's folder where `--out` does not say, as for `scopenote run`."""
    if config.is_dir():
        return config
    return config.parent if config.name == "run.toml" else Path(config.stem)


def _parameters(
    file: Path, run: Path, when_busy: WhenBusy, budget_usd: str | None
) -> dict[str, Any]:
    """Of the flow; what is wrong with them is said now, and not at two in the morning."""
    from .config import load_config
    from .working import run_folder

    settings = load_config(file)
    if run.exists():
        run_folder(run, settings)
    return {
        "config": str(file),
        "run": str(run),
        "when_busy": when_busy.value,
        "budget_usd": budget_usd,
    }


def _how_to_get_a_server() -> str:
    words = f"`{program()} schedule … --with-server`"
    return f"start one with `prefect server start` and name it in PREFECT_API_URL, or use {words}"


def _use_server_of(run: Path | None) -> None:
    """The one that `--with-server` runs for this run now; else the user's stays."""
    from .schedule_server import remembered_url

    url = remembered_url(run) if run is not None else None
    if url is not None:
        os.environ["PREFECT_API_URL"] = url


def _deploy(run: Path, parameters: dict[str, Any], timetable: Timetable | None, pool: str) -> None:
    _use_server_of(run)
    from .deployments import deploy, prefect_client

    with prefect_client(_how_to_get_a_server()) as client:
        found = deploy(client, deployment_name(run), parameters, timetable, pool)
        url = str(client.api_url)
    print_page(render_deployment(found))
    worker = f"prefect worker start --pool {shlex.quote(pool)} --limit 2"
    complain(
        f"A worker runs it; where none does yet:\n  PREFECT_API_URL={url.rstrip('/')} {worker}"
    )


def _change(run: Path, is_pause: bool, is_resume: bool) -> None:
    _use_server_of(run)
    from . import deployments

    name = deployment_name(run)
    with deployments.prefect_client(_how_to_get_a_server()) as client:
        if is_pause:
            print_page(render_deployment(deployments.pause(client, name, str(run))))
        elif is_resume:
            print_page(render_deployment(deployments.resume(client, name, str(run))))
        else:
            deployments.remove(client, name, str(run))
            complain(f"Removed. What was labelled stays in {run}.")


def _list(run: Path | None, as_json: bool) -> None:
    _use_server_of(run)
    from .deployments import prefect_client, read_deployments

    with prefect_client(_how_to_get_a_server()) as client:
        found = read_deployments(client)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        print_page(render_deployments(found))


def _serve(
    run: Path,
    parameters: dict[str, Any],
    timetable: Timetable | None,
    pool: str,
    port: int | None,
) -> None:
    from ..store.run_folder import RunFolder
    from .schedule_server import schedule_server

    folder = RunFolder(run).create()
    # To be stopped is how this ends: nothing has failed.
    with suppress(KeyboardInterrupt), schedule_server(folder, port, pool) as serving:
        complain(f"Starting Prefect at {serving.page}")
        from .deployments import deploy, prefect_client

        _wait_until_up(serving)
        with prefect_client(_how_to_get_a_server()) as client:
            found = deploy(client, deployment_name(run), parameters, timetable, pool)
        print_page(render_deployment(found))
        complain(f"Pages: {serving.page}\nTo stop: Ctrl-C, or `kill {os.getpid()}`")
        serving.start_worker()
        serving.watch()
    complain("Stopped. Nothing begins until the same command is given again; its schedule is kept.")


def _wait_until_up(serving: ScheduleServer) -> None:
    import httpx

    assert serving.server is not None
    deadline = time.monotonic() + _SERVER_SECONDS
    while True:
        serving.server.require_alive()
        try:
            if httpx.get(f"{serving.url}/health", timeout=5.0).is_success:
                return
        except httpx.HTTPError:
            # It listens before it answers.
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
