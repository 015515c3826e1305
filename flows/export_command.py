"""`scopenote export`: a run's labels as files that others load with one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..store.errors import UserMistake
from .terminal import print_json, print_page
from .working import published

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .export_run import ExportReport


ExportFormat = Literal["dataset", "parquet", "jsonl", "csv"]
"""What an export is made of."""


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write.")],
    format: Annotated[
        ExportFormat,
        typer.Option("--format", help="dataset: for datasets.load_dataset, with a data card."),
    ] = "dataset",
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", metavar="SAE", help="Only this SAE's features; may be repeated."),
    ] = None,
    source: Annotated[
        Literal["auto", "human", "imported"] | None,
        typer.Option("--source", help="Only labels of this source."),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="R", help="Only labels that score at least this."),
    ] = None,
    all_labels: Annotated[
        bool,
        typer.Option(
            "--all-labels", help="Every label proposed, not only the one in force of each feature."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Take the place of what lies in DIR.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="What was written, as JSON.")] = False,
) -> None:
    """Labels, features, contexts and scores as files."""
    from ..store.export_choice import ExportChoice
    from .export_run import write_export
    from .progress import Progress

    choice = ExportChoice(
        saes=tuple(sae or ()),
        source=source,
        min_score=min_score,
        all_labels=all_labels,
    )
    with published(run) as (_, store), Progress() as progress:
        if store.is_older:
            raise UserMistake(
                "This database was made by an older version and cannot be brought up to date here.",
                where=str(run),
                mend="export it where the run is, or with the version that made it",
            )
        report = write_export(store, to, format, choice, progress, overwrite)
    if json:
        print_json(report.as_dict())
    else:
        print_page(render_export(report))


def render_export(report: ExportReport) -> RenderableType:
    """What was written, and how it is loaded."""
    from rich.console import Group

    from .plain_tables import plain_table
    from .summary import bytes_in_words

    table = plain_table("file", "rows>", "size>")
    for file in report.files:
        rows = "" if file.rows is None else f"{file.rows:,}"
        table.add_row(file.file, rows, bytes_in_words(file.bytes))
    return Group(f"Exported to {report.target}", "", table)
