"""The command that brings in labels written by others, and what it says at its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import print_json, print_page, program
from .working import configured_run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .import_labels import ImportReport
    from .reports import RunReport

_SHOWN_SETS = 20
_UNKNOWN = (
    "Nothing is known of the text that they were written from: it may have been text that they "
    "are scored on."
)


def import_labels(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR",
            help="Neuronpedia's explanations (.jsonl, .jsonl.gz), or CSV or Parquet with columns "
            "`feature` and `text`; or a folder of such files.",
        ),
    ],
    source_name: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="Whose labels they are; otherwise `neuronpedia`, or what a table's file is "
            "called.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Bring in labels by others, to be scored like ours."""
    config, folder = configured_run(run, None)
    from .finish_run import finished
    from .import_labels import COMMAND, laid_aside
    from .import_labels import import_labels as bring_in
    from .progress import Progress
    from .reports import RunReport

    reports: list[ImportReport] = []

    def work() -> RunReport:
        reports.append(bring_in(config, folder, aside))
        return RunReport((reports[0].as_stage(),))

    with (
        folder.lock(f"scopenote {COMMAND}"),
        Progress() as progress,
        laid_aside(folder, path, source_name, progress) as aside,
    ):
        _, status = finished(work, folder, to_prefect=False)
    (report,) = reports
    if json:
        print_json(report.as_dict())
    else:
        print_page(render_import(report, run))
    raise typer.Exit(status)


def render_import(report: ImportReport, run: Path) -> RenderableType:
    """What was brought in, what was left out and why, and what to do with it."""
    from rich.console import Group
    from rich.text import Text

    from .visible_text import visible

    n_files = len(report.files)
    files = visible(report.files[0]) if n_files == 1 else f"{n_files:,} files"
    blocks: list[RenderableType] = [
        Text.assemble((_in_words(report), "bold"), (f"  {_rows(report.n_rows)} of {files}", "dim")),
        "",
        _sets_table(report),
    ]
    if report.left_out:
        blocks += ["", *_left_out(report)]
    if report.n_repeated:
        says = "says" if report.n_repeated == 1 else "say"
        words = f"{_rows(report.n_repeated)} {says} what another row says."
        blocks += ["", Text(words, style="dim")]
    if report.n_new:
        blocks += ["", Text(_UNKNOWN, style="dim")]
    for note in report.notes:
        blocks += ["", Text(visible(note), style="yellow")]
    if report.n_new and not report.notes:
        score = f"  {program()} score {shlex.quote(str(run))}"
        # Never wrapped: it is there to be copied.
        command = Text(score, style="cyan", no_wrap=True, overflow="ignore")
        blocks += ["", Text("To have them scored"), command]
    return Group(*blocks)


def _in_words(report: ImportReport) -> str:
    if report.n_new:
        return f"{report.n_new:,} label{'s' if report.n_new > 1 else ''} brought in"
    return "Nothing new: all of these labels were there already"


def _rows(n: int) -> str:
    return f"{n:,} row{'s' if n != 1 else ''}"


def _sets_table(report: ImportReport) -> RenderableType:
    from rich.text import Text

    from .plain_tables import plain_table
    from .visible_text import visible

    table = plain_table("labels by", "model", "new>", "there before>", "features>")
    for each in report.sets[:_SHOWN_SETS]:
        table.add_row(
            Text(visible(each.explainer), style="cyan"),
            Text(visible(each.model or "")),
            f"{each.n_new:,}" if each.n_new else "",
            f"{each.n - each.n_new:,}" if each.n > each.n_new else "",
            f"{each.n_features:,}",
        )
    if len(report.sets) > _SHOWN_SETS:
        table.add_row(Text(f"… and {len(report.sets) - _SHOWN_SETS:,} more"))
    return table


def _left_out(report: ImportReport) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from .visible_text import visible

    yield Text(f"{_rows(report.n_left_out)} left out", style="bold")
    for left in report.left_out:
        yield Text(f"  {left.n:,} because {left.reason}", style="yellow")
        for example in left.examples:
            yield Padding(Text(visible(example), style="dim"), (0, 0, 0, 4))
        if left.n > len(left.examples):
            yield Padding(Text("…", style="dim"), (0, 0, 0, 4))
