"""What the writer of an export's format is given, and a table as one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.export_choice import Chosen, ExportChoice
from ..store.export_tables import read_table
from ..store.export_writers import open_rows_file

if TYPE_CHECKING:
    import duckdb

    from ..store.export_folder import ExportFolder
    from .progress import Progress


@dataclass(frozen=True, slots=True)
class ExportWork:
    """What the writer of a format is given.

    Attributes:
        connection: to the published database, with the tables that `choose` fills.
        database: its file.
        folder: to write into.
        choice: what was asked for.
        chosen: how much that is.
        progress: where the work's stages are shown.
        license: under which the labels are given on; an identifier of the hub's.
        place: where the data set will be: a repository of the hub; None: this folder.
    """

    connection: duckdb.DuckDBPyConnection
    database: Path
    folder: ExportFolder
    choice: ExportChoice
    chosen: Chosen
    progress: Progress
    license: str
    place: str | None


def write_table(work: ExportWork, name: str, file: str) -> None:
    """A table as one file, of the kind that its name ends with."""
    table = read_table(work.connection, name)
    with (
        work.progress.stage(f"export {name}", getattr(work.chosen, name), "rows") as stage,
        open_rows_file(work.folder.new_file(file), table.schema) as rows_file,
    ):
        for batch in table.batches:
            rows_file.write(batch)
            stage.advance(len(batch))
    work.folder.add(file, name, stage.done, table.query)
