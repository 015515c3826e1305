"""Exports made in tests: of a run, and the rows that they should have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scopenote.flows.export_run import ExportRequest, write_export
from scopenote.flows.progress import Progress
from scopenote.store.database import open_store
from scopenote.store.export_choice import ExportChoice, choose
from scopenote.store.export_tables import read_table
from scopenote.store.run_folder import RunFolder

Rows = list[dict[str, Any]]


def export(run: RunFolder, target: Path, kind: str = "parquet", **choice: Any) -> Path:
    request = ExportRequest(target=target, format=kind, choice=ExportChoice(**choice))
    with open_store(run.path) as store, Progress(open(os.devnull, "w")) as progress:
        write_export(run, store, request, progress)
    return target


def rows_of(run: RunFolder, name: str, **choice: Any) -> Rows:
    """A table of an export as Python has it, straight from the database."""
    with open_store(run.path) as store:
        choose(store.connection, ExportChoice(**choice))
        return [
            row for batch in read_table(store.connection, name).batches for row in batch.to_pylist()
        ]


def parquet(folder: Path, name: str) -> Rows:
    import pyarrow.parquet as pq

    return pq.read_table(folder / f"{name}.parquet").to_pylist()
