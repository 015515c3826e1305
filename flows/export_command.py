"""`scopenote export`: a run's labels as files that others load with one line."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..store.errors import UserMistake
from .terminal import print_json, print_page
from .working import published

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .export_run import ExportReport


ExportFormat = Literal["dataset", "parquet", "jsonl", "csv", "neuronpedia", "html"]
"""What an export is made of."""


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="dataset: for datasets.load_dataset, with a data card; "
            "html: a page for each SAE, to be mailed.",
        ),
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
    license: Annotated[
        str,
        typer.Option(
            "--license", metavar="ID", help="For the data card, as the hub spells licences."
        ),
    ] = "unknown",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="REPO",
            help="Also upload the data set to this repository of the hub, private if it is new; "
            "the token is that of `hf auth login` or HF_TOKEN.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="What was written, as JSON.")] = False,
) -> None:
    """Labels, features, contexts and scores as files."""
    from ..store.export_choice import ExportChoice
    from .export_run import ExportRequest, write_export
    from .progress import Progress
    from .push_dataset import prepare_repository, push_dataset

    if push_to_hub is not None and format != "dataset":
        raise UserMistake(
            "Only a data set is uploaded.",
            where="--push-to-hub",
            found=f"--format {format}",
            expected="--format dataset",
        )

    choice = ExportChoice(
        saes=tuple(sae or ()),
        source=source,
        min_score=min_score,
        all_labels=all_labels,
    )
    api = None if push_to_hub is None else prepare_repository(push_to_hub)
    request = ExportRequest(
        target=to,
        format=format,
        choice=choice,
        overwrite=overwrite,
        license=license,
        place=push_to_hub,
    )
    with published(run) as (folder, store), Progress() as progress:
        if store.is_older:
            raise UserMistake(
                "This database was made by an older version and cannot be brought up to date here.",
                where=str(run),
                mend="export it where the run is, or with the version that made it",
            )
        report = write_export(folder, store, request, progress)
        revision = store.revision
    address = None
    if api is not None and push_to_hub is not None:
        address = push_dataset(api, push_to_hub, to, revision)
    if json:
        print_json({**report.as_dict(), "uploaded_to": address})
    else:
        print_page(render_export(report, address))


def render_export(report: ExportReport, address: str | None = None) -> RenderableType:
    """What was written, and how it is loaded."""
    from rich.console import Group

    from .plain_tables import plain_table
    from .summary import bytes_in_words

    table = plain_table("file", "rows>", "size>")
    for name, files in groupby(report.files, key=lambda file: _shown_as(file.file)):
        found = list(files)
        counted = [file.rows for file in found if file.rows is not None]
        rows = f"{sum(counted):,}" if counted else ""
        table.add_row(name, rows, bytes_in_words(sum(file.bytes for file in found)))
    uploaded = [] if address is None else ["", f"Uploaded to {address}"]
    return Group(f"Exported to {report.request.target}", "", table, *uploaded)


def _shown_as(file: str) -> str:
    """A file's name; of batches, of which there may be thousands, one for all of a folder."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/batch-*" if name.startswith("batch-") else file
