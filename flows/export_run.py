"""Writing a run's labels, and what belongs to them, as files: the order of the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.export_choice import TABLES, Chosen, ExportChoice, choose
from ..store.export_folder import ExportedFile, written_export
from ..store.export_neuronpedia import write_neuronpedia
from ..store.facts import get_meta
from .export_dataset import write_dataset
from .export_work import ExportWork, write_table

if TYPE_CHECKING:
    from ..store.database import Store
    from ..store.run_folder import RunFolder
    from .export_command import ExportFormat
    from .progress import Progress

# Above this DuckDB writes to the disk: an export is to fit beside whatever else is at work.
_MEMORY = "400MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What is to be exported, and how.

    Attributes:
        target: the folder to write.
        format: what the export is made of.
        choice: of which features and labels.
        overwrite: take the place of what lies there.
        license: under which the labels are given on; an identifier of the hub's.
        place: where a data set will be: a repository of the hub; None: the folder.
    """

    target: Path
    format: ExportFormat
    choice: ExportChoice
    overwrite: bool = False
    license: str = "unknown"
    place: str | None = None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        chosen: rows by table.
        files: all but the manifest.
    """

    request: ExportRequest
    chosen: Chosen
    files: tuple[ExportedFile, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        shown = ("file", "rows", "bytes", "sha256")
        return {
            "folder": str(self.request.target),
            "format": self.request.format,
            "rows": self.chosen.as_dict(),
            "files": [{name: getattr(each, name) for name in shown} for each in self.files],
        }


def write_export(
    folder: RunFolder, store: Store, request: ExportRequest, progress: Progress
) -> ExportReport:
    """Exports what was asked for; the folder is there as a whole or not at all.

    Args:
        folder: of the run.
        store: its published database.
        request: what is asked for.
        progress: where the work's stages are shown.

    Raises:
        UserMistake: nothing is chosen, or the folder to write is not free.
        StoreError: the disk refuses it.
    """
    connection = store.connection
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    with written_export(request.target, request.overwrite) as export:
        chosen = choose(connection, request.choice)
        work = ExportWork(
            connection=connection,
            database=folder.database,
            folder=export,
            choice=request.choice,
            chosen=chosen,
            progress=progress,
            license=request.license,
            place=request.place,
        )
        _WRITERS[request.format](work)
        files = export.write_manifest(_facts(store, request))
    return ExportReport(request, chosen, files)


def _facts(store: Store, request: ExportRequest) -> dict[str, Any]:
    from .. import __version__

    return {
        "version": __version__,
        "format": request.format,
        "choice": request.choice.as_dict(),
        "database": {
            "revision": store.revision,
            "schema_version": get_meta(store.connection, "schema_version"),
        },
    }


def _write_files(work: ExportWork, kind: str) -> None:
    for name in TABLES:
        write_table(work, name, f"{name}.{kind}")


def _write_neuronpedia(work: ExportWork) -> None:
    n_rows = work.chosen.features + work.chosen.labels + work.chosen.contexts
    with work.progress.stage("export", n_rows, "rows") as stage:
        write_neuronpedia(work.connection, work.folder, stage.advance)


def _write_pages(work: ExportWork) -> None:
    from .sae_page import write_pages  # templates are for this format only

    write_pages(work)


_WRITERS: Mapping[ExportFormat, Callable[[ExportWork], None]] = {
    "dataset": write_dataset,
    "parquet": lambda work: _write_files(work, "parquet"),
    "jsonl": lambda work: _write_files(work, "jsonl"),
    "csv": lambda work: _write_files(work, "csv"),
    "neuronpedia": _write_neuronpedia,
    "html": _write_pages,
}
