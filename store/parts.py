"""Parts: the immutable folders of Parquet files that workers leave for the coordinator.

A part is written under a temporary name and renamed when it is whole, so a part that is seen
is complete, whatever happened to its writer. `part.json` says what it holds; a part's name
follows from its content's identity, so that doing the same work twice gives the same part.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import StoreError

MANIFEST = "part.json"
"""What a part says of itself; a folder without it is no part."""
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part on disk.

    Attributes:
        part_id: its name, unique by content.
        stage: `collect`, `merged`, `neurons`, `explain`, `score`, `rescore`,
            `gold`, `embed` or an effect's kind.
        folder: where its files are.
        manifest: what the writer said of it; `identity` decides what it may be combined with.
    """

    part_id: str
    stage: str
    folder: Path
    manifest: dict[str, Any]

    def file(self, table: str) -> Path:
        """The Parquet file of one of its tables."""
        return self.folder / f"{table}.parquet"


def write_part(
    parts: Path,
    part_id: str,
    stage: str,
    tables: Mapping[str, pa.Table | pa.RecordBatchReader],
    manifest: dict[str, Any],
) -> Part:
    """Writes a part, or finds that it is already there; either way it is whole afterwards.

    Args:
        parts: the folder of all.
        part_id: its name.
        stage: as in `Part`.
        tables: by name; of a reader each batch becomes a row group as it is read.
        manifest: what it says of itself.
    """
    target = parts / part_id
    if not (target / MANIFEST).exists():
        unfinished = begin_part(parts)
        # Encoding a table runs outside of the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
            written = [
                executor.submit(_write_table, table, unfinished / f"{name}.parquet")
                for name, table in tables.items()
            ]
            for each in written:
                each.result()
        finish_part(unfinished, target, stage, manifest)
    return read_part(target)


def _write_table(table: pa.Table | pa.RecordBatchReader, file: Path) -> None:
    with pq.ParquetWriter(
        file, table.schema, compression="lz4", use_dictionary=["doc_id"], write_statistics=False
    ) as writer:
        if isinstance(table, pa.Table):
            writer.write_table(table, _rows_at_once(table))
        else:
            for batch in table:
                writer.write_batch(batch)


def _rows_at_once(table: pa.Table) -> int:
    """Rows of some 16 MB, so that readers need not hold more at once."""
    bytes_a_row = table.nbytes / max(1, table.num_rows)
    return int(min(max(1024, (16 << 20) / max(1, bytes_a_row)), 1 << 18))


def begin_part(parts: Path) -> Path:
    """A folder to write a part's files in; it counts for nothing until it is finished."""
    unfinished = parts / f"{_UNFINISHED}{_machine()}-{os.getpid()}-{uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    return unfinished


def finish_part(unfinished: Path, target: Path, stage: str, manifest: dict[str, Any]) -> None:
    """Writes the manifest and gives the part its name."""
    content = {"part_id": target.name, "stage": stage, **manifest}
    (unfinished / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False))
    for file in unfinished.iterdir():
        _flush_to_disk(file)
    try:
        unfinished.rename(target)
    except OSError:
        if not (target / MANIFEST).exists():
            raise
        # Another worker finished the same part first; its content is the same.
        shutil.rmtree(unfinished)


def read_part(folder: Path) -> Part:
    """The part in this folder.

    Raises:
        StoreError: its manifest is missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return Part(manifest["part_id"], manifest["stage"], folder, manifest)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            "A part cannot be read.",
            where=str(folder),
            found=str(error),
            expected=f"a folder with {MANIFEST}",
            mend="remove the folder; what it held will be worked out again",
        ) from error


def list_parts(parts: Path) -> Iterator[Part]:
    """All finished parts, by name."""
    for folder in sorted(parts.iterdir()) if parts.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            yield read_part(folder)


def remove_unfinished(parts: Path) -> None:
    """Removes what writers that died on this machine left behind."""
    for folder in parts.glob(f"{_UNFINISHED}{_machine()}-*"):
        pid = int(folder.name.removeprefix(f"{_UNFINISHED}{_machine()}-").split("-")[0])
        if not _is_alive(pid):
            shutil.rmtree(folder)


def _machine() -> str:
    # A name that says nothing of the machine to whom the parts are given.
    return blake2b(platform.node().encode(), digest_size=4).hexdigest()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    # What this process began before has ended, well or badly.
    return pid != os.getpid()


def _flush_to_disk(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
