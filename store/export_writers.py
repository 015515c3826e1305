"""Files of rows, written batch by batch: Parquet, JSON lines and CSV, each a function of its rows.

In CSV lists are JSON. A text that a spreadsheet might take for a formula has `'` before it, and so
has one that begins with `'`: whoever takes one leading `'` away has the text again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

GROUP_ROWS = 8192
"""Rows of a row group in Parquet: one feature's contexts are found in 7 ms."""

_TIME = "strftime({0} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
# The last four are the wide forms, which some spreadsheets take for the others.
_FORMULA = "^[=+\\-@\\t\\r\\n''＝＋－＠]"


class RowsFile(Protocol):
    """A file that rows are written to; `close` makes it whole."""

    def write(self, batch: pa.Table) -> None:
        """Adds rows."""

    def close(self) -> None:
        """Ends the file."""


class ParquetFile:
    """Compressed by Zstandard, with the rows of each batch in groups of their own."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")

    def write(self, batch: pa.Table) -> None:
        """Adds rows."""
        if len(batch):  # `datasets` fails on a group of no rows
            self._writer.write_table(batch, row_group_size=GROUP_ROWS)

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


class JsonLinesFile:
    """An object a line, times in ISO 8601."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._handle = file.open("wb")
        self._duckdb = duckdb.connect()
        self._columns = ", ".join(
            f"{_TIME.format(_quoted(field.name))} AS {_quoted(field.name)}"
            if pa.types.is_timestamp(field.type)
            else _quoted(field.name)
            for field in schema
        )

    def write(self, batch: pa.Table) -> None:
        """Adds rows."""
        lines = _asked(
            self._duckdb,
            f"SELECT to_json(r)::VARCHAR FROM (SELECT {self._columns} FROM batch) r",
            batch,
        )
        for line in lines.column(0).to_pylist():
            self._handle.write(line.encode())
            self._handle.write(b"\n")

    def close(self) -> None:
        """Ends the file."""
        self._duckdb.close()
        self._handle.close()


class CsvFile:
    """With a line of names; NULL is nothing at all, an empty text `""`."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._duckdb = duckdb.connect()
        self._columns = ", ".join(map(_cell, schema))
        flat = pa.schema([(field.name, _flat(field.type)) for field in schema])
        self._writer = pyarrow.csv.CSVWriter(file, flat)
        self._schema = flat

    def write(self, batch: pa.Table) -> None:
        """Adds rows."""
        cells = _asked(self._duckdb, f"SELECT {self._columns} FROM batch", batch)
        self._writer.write_table(cells.cast(self._schema))

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
        self._duckdb.close()


ROWS_FILES: Mapping[str, type[ParquetFile] | type[JsonLinesFile] | type[CsvFile]] = {
    "parquet": ParquetFile,
    "jsonl": JsonLinesFile,
    "csv": CsvFile,
}
"""Kinds of file, by how their names end."""


@contextmanager
def open_rows_file(file: Path, schema: pa.Schema) -> Iterator[RowsFile]:
    """A new file of the kind that its name ends with, whole when the block ends."""
    rows_file = ROWS_FILES[file.suffix.removeprefix(".")](file, schema)
    try:
        yield rows_file
    finally:
        rows_file.close()


def _asked(connection: duckdb.DuckDBPyConnection, query: str, batch: pa.Table) -> pa.Table:
    connection.execute("SET TimeZone = 'UTC'; SET threads = 1")
    connection.register("batch", batch)
    answer = connection.sql(query).to_arrow_table()
    connection.unregister("batch")
    return answer


def _cell(field: pa.Field) -> str:
    name = _quoted(field.name)
    if pa.types.is_timestamp(field.type):
        return f"{_TIME.format(name)} AS {name}"
    if pa.types.is_nested(field.type):
        return f"to_json({name})::VARCHAR AS {name}"
    if pa.types.is_string(field.type):
        return f"if(regexp_matches({name}, '{_FORMULA}'), '''' || {name}, {name}) AS {name}"
    return name


def _flat(kind: pa.DataType) -> pa.DataType:
    is_spelled = pa.types.is_nested(kind) or pa.types.is_timestamp(kind)
    return pa.string() if is_spelled else kind


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
