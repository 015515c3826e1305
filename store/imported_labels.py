"""Labels that others wrote, by the hundred thousand: laid aside in a file, then added at once.

They do not go through the inbox, which every reader has to read: that is for what people write one
by one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from .current_features import note_touched
from .database import now
from .facts import REVISION, get_meta, set_meta, transaction
from .parts import begin_part
from .records import Label, content_hash

if TYPE_CHECKING:
    import duckdb

_ROWS_AT_ONCE = 16_384
_OF_LABELS = pa.schema(
    {
        **dict.fromkeys(
            ("text", "explanation", "explainer", "prompt_version", "model", "author"), pa.string()
        ),
        **dict.fromkeys(("source", "status"), pa.string()),
        **dict.fromkeys(("draw", "generation"), pa.int32()),
    }
)
_SCHEMA = pa.schema(
    [("label_id", pa.string()), ("sae_id", pa.string()), ("feature", pa.int32()), *_OF_LABELS]
)


@dataclass(frozen=True, slots=True)
class ImportedSet:
    """Labels that say the same of who wrote them.

    Attributes:
        n: different labels.
        n_new: of these, how many were not there before.
        n_features: that they are of.
    """

    explainer: str
    model: str | None
    n: int
    n_new: int
    n_features: int


@dataclass(slots=True)
class LabelsAside:
    """Labels in a file of a run's folder, which nobody reads yet.

    Attributes:
        n: how many were added, those that are the same counted as often as they came.
    """

    file: Path
    n: int = 0
    _writer: pq.ParquetWriter | None = None
    _waiting: list[Label] = field(default_factory=list)

    def add(self, label: Label) -> None:
        """Adds one."""
        self._waiting.append(label)
        self.n += 1
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Has all of them in the file; calling twice does no harm."""
        self._flush()
        assert self._writer is not None, "just opened"
        self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.file, _SCHEMA)
        if self._waiting:
            self._writer.write_table(_table(self._waiting))
            self._waiting.clear()


@contextmanager
def labels_aside(parts: Path) -> Iterator[LabelsAside]:
    """A place for labels, gone after the block; of a process that died, `remove_unfinished` does.

    Args:
        parts: the run's folder of parts.
    """
    folder = begin_part(parts)
    aside = LabelsAside(folder / "labels.parquet")
    try:
        yield aside
        aside.close()
    finally:
        shutil.rmtree(folder)


def add_imported(
    connection: duckdb.DuckDBPyConnection, aside: LabelsAside, run_id: str
) -> tuple[ImportedSet, ...]:
    """Adds the labels that are not there yet, all of them or none.

    Args:
        connection: the working copy.
        aside: the labels; closed by this.
        run_id: of the run that brings them in.

    Returns:
        What there was, by who wrote it.
    """
    aside.close()
    before = get_meta(connection, REVISION)
    with transaction(connection):
        sets = tuple(
            ImportedSet(*row)
            for row in connection.execute(_SETS, {"file": str(aside.file)}).fetchall()
        )
        if any(each.n_new for each in sets):
            values = {"file": str(aside.file), "now": now(), "run": run_id}
            connection.execute(_ADD, values).fetchall()
            set_meta(connection, REVISION, content_hash(["imported", run_id]))
            touched = "SELECT sae_id, feature FROM labels WHERE run_id = ?"
            note_touched(connection, before, touched, [run_id])
    return sets


_SETS = """
    SELECT explainer, model, count(DISTINCT a.label_id),
        count(DISTINCT a.label_id) FILTER (l.label_id IS NULL),
        count(DISTINCT (a.sae_id, a.feature))
    FROM read_parquet($file) a LEFT JOIN (SELECT label_id FROM labels) l USING (label_id)
    GROUP BY explainer, model ORDER BY explainer, model NULLS FIRST
"""
# Of rows that say the same the first: only what they explain it by may differ.
_ADD = """
    INSERT INTO labels BY NAME
    SELECT * EXCLUDE (file_row_number), $now AS created_at, $run AS run_id
    FROM read_parquet($file, file_row_number = true)
    WHERE file_row_number IN (
        SELECT min(file_row_number) FROM read_parquet($file, file_row_number = true)
        ANTI JOIN labels USING (label_id) GROUP BY label_id
    )
"""


def _table(labels: Sequence[Label]) -> pa.Table:
    return pa.table(
        {
            "label_id": [each.label_id for each in labels],
            "sae_id": [each.feature_id.sae_id for each in labels],
            "feature": [each.feature_id.feature for each in labels],
            **{name: [getattr(each, name) for each in labels] for name in _OF_LABELS.names},
        },
        _SCHEMA,
    )
