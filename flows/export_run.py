"""Writing a run's labels as files: what each format is made of, and the order of the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.export_choice import TABLES, Chosen, ExportChoice, choose
from ..store.export_folder import ExportedFile, ExportFolder, written_export
from ..store.export_tables import read_table
from ..store.export_writers import open_rows_file
from ..store.facts import get_meta

if TYPE_CHECKING:
    import duckdb

    from ..store.database import Store
    from .export_command import ExportFormat
    from .progress import Progress

# Above this DuckDB writes to the disk: an export is to fit beside whatever else is at work.
_MEMORY = "400MB"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        target: the folder.
        chosen: rows by table.
        files: all but the manifest.
    """

    target: Path
    format: ExportFormat
    chosen: Chosen
    files: tuple[ExportedFile, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "folder": str(self.target),
            "format": self.format,
            "rows": self.chosen.as_dict(),
            "files": [{"file": each.file, "rows": each.rows, "bytes": each.bytes,
                       "sha256": each.sha256} for each in self.files],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExportWork:
    """What a format's writer is given.

    Attributes:
        connection: to the published database, with the tables that `choose` fills.
        folder: to write into.
        choice: what was asked for.
        chosen: how much that is.
        progress: where the work's stages are shown.
    """

    connection: duckdb.DuckDBPyConnection
    folder: ExportFolder
    choice: ExportChoice
    chosen: Chosen
    progress: Progress


def write_export(
    store: Store,
    target: Path,
    kind: ExportFormat,
    choice: ExportChoice,
    progress: Progress,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a run's labels, and what belongs to them, into a folder.

    Args:
        store: the run's published database.
        target: the folder, which is there as a whole or not at all.
        kind: what the export is made of.
        choice: of which features and labels.
        progress: where the work's stages are shown.
        overwrite: take the place of what lies there.

    Raises:
        UserMistake: nothing is chosen, or the folder is not free.
        StoreError: the disk refuses it.
    """
    connection = store.connection
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    with written_export(target, overwrite) as folder:
        chosen = choose(connection, choice)
        _WRITERS[kind](ExportWork(connection, folder, choice, chosen, progress))
        files = folder.write_manifest(_facts(store, kind, choice))
    return ExportReport(target, kind, chosen, files)


def _facts(store: Store, kind: ExportFormat, choice: ExportChoice) -> dict[str, Any]:
    from .. import __version__

    return {
        "version": __version__,
        "format": kind,
        "choice": choice.as_dict(),
        "database": {
            "revision": store.revision,
            "schema_version": get_meta(store.connection, "schema_version"),
        },
    }


def write_tables(work: ExportWork, suffix: str) -> None:
    """Each table as one file of this kind."""
    for name in TABLES:
        table = read_table(work.connection, name)
        file = f"{name}.{suffix}"
        n_rows = getattr(work.chosen, name)
        with (
            work.progress.stage(f"export {name}", n_rows, "rows") as stage,
            open_rows_file(work.folder.new_file(file), table.schema) as rows_file,
        ):
            for batch in table.batches:
                rows_file.write(batch)
                stage.advance(len(batch))
        work.folder.add(file, name, stage.done, table.query)


_WRITERS: Mapping[ExportFormat, Callable[[ExportWork], None]] = {
    "parquet": lambda work: write_tables(work, "parquet"),
    "jsonl": lambda work: write_tables(work, "jsonl"),
    "csv": lambda work: write_tables(work, "csv"),
}
