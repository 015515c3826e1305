"""The command that compares explainers, models and prompts, or two runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..store.errors import UserMistake
from ..store.paired_scores import SideKey
from .terminal import print_json, print_page, program
from .working import published


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    other_run: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER_RUN", help="Another run, to be compared with it."),
    ] = None,
    by: Annotated[
        SideKey | None, typer.Option("--by", help="Within one run: what labels differ in.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="NAME",
            help="What the others are compared with; by default what has most scores.",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Another figure than the headline, such as ev_correlation_top or "
            "detection/auroc_random.",
        ),
    ] = "correlation",
    n: Annotated[
        int, typer.Option("--n", min=0, help="How many features that moved most, each way.")
    ] = 5,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Which explainer, model or run scores better on the same."""
    if (by is None) == (other_run is None) or (other_run is not None and base is not None):
        raise UserMistake(
            "Either labels of one run are compared, or two runs.",
            found="neither" if by is None and other_run is None else "both",
            expected="`--by`, or another run",
            mend=f"`{program()} compare {shlex.quote(str(run))} --by explainer`",
        )
    from .compare_page import render_comparison
    from .compare_runs import compare_runs, compare_sides, require_current

    with published(run) as (_, store):
        require_current(store, str(run))
        if other_run is None:
            assert by is not None, "one of the two was given"
            found, where = compare_sides(store, by, base, metric, n), str(run)
        else:
            with published(other_run) as (_, other):
                require_current(other, str(other_run))
                found = compare_runs(store, other, _titles(run, other_run), metric, n)
            where = f"{run} and {other_run}"
    if json:
        print_json(found.as_dict())
    else:
        print_page(render_comparison(found, where))


def _titles(run: Path, other: Path) -> tuple[str, str]:
    """What two runs are called: by their folders' names, where these differ."""
    names = run.resolve().name, other.resolve().name
    if names[0] != names[1]:
        return names
    if run.resolve() == other.resolve():
        return names[0], f"{names[0]} again"
    return str(run), str(other)
