"""Files of labels that others wrote, row by row as they stand there; what a row means is not known.

Three kinds: batches of explanations as Neuronpedia gives them out (`.jsonl`, `.jsonl.gz`), CSV, and
Parquet. A file is read as a stream. One that is cut off, is in another form, or has other fields is
refused with the place; a row that lacks something is given as it is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from .errors import UserMistake

# By how a file's name ends, what it is.
_KINDS = {
    ".jsonl": "Neuronpedia explanations",
    ".jsonl.gz": "Neuronpedia explanations",
    ".csv": "CSV",
    ".csv.gz": "CSV",
    ".parquet": "Parquet",
}
NEURONPEDIA = _KINDS[".jsonl"]
_ENDINGS = ", ".join(_KINDS)
# Of Neuronpedia's bulk layout, the folder with its labels.
_EXPLANATIONS = "explanations"

_OF_NEURONPEDIA = ("modelId", "layer", "index", "description")
_OF_TABLES = ("feature", "text")
# Columns of our own exports: the first names a neuron as people do, where `feature` is a number; of
# the second a CSV is known by, in which a text that might be a formula has `'` before it.
_FULL_ID, _OURS = "feature_id", "label_id"
_MORE_OF_TABLES = (_FULL_ID, "sae_id", "explanation", "explainer", "author", "model")
_NO_FORMULA = re.compile("^'(?=[=+\\-@\t\r\n'＝＋－＠])")
# Those that are read at once from Parquet.
_ROWS_AT_ONCE = 8192
_SHOWN_FIELDS = 12
_LONGEST_FIELD = 1 << 20


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A file of labels.

    Attributes:
        name: as it is told to a person, below the folder that was named.
        kind: one of three.
    """

    path: Path
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row as it stands in a file; None where it has nothing there.

    Attributes:
        line: where, from 1; in Parquet the number of the row.
        feature: its name or number.
        sae: whose feature, if that is a field of its own.
        fault: why the row cannot be read; the rest is then None.
    """

    line: int
    feature: Any = None
    sae: Any = None
    text: Any = None
    explanation: Any = None
    explainer: Any = None
    author: Any = None
    model: Any = None
    fault: str | None = None


def find_label_files(path: Path) -> list[LabelFile]:
    """The file itself, or the files of labels in a folder and those below it, batch 2 before 10.

    In Neuronpedia's bulk layout that is what lies in a folder `explanations`.

    Raises:
        UserMistake: there is none, or files of several kinds.
    """
    if path.is_file():
        return [LabelFile(path, path.name, _kind_of(path))]
    if not path.is_dir():
        raise UserMistake(
            "There is no such file or folder.", where=str(path), expected="a file of labels"
        )
    seen = [
        each
        for each in sorted(path.rglob("*"), key=_natural)
        if each.is_file() and not any(p.startswith(".") for p in each.relative_to(path).parts)
    ]
    found = [each for each in seen if _ending(each) is not None]
    found = [each for each in found if each.parent.name == _EXPLANATIONS] or found
    if not found:
        raise UserMistake(
            "There is no file of labels in this folder.",
            where=str(path),
            found=_listed([each.name for each in seen]) or "nothing",
            expected=f"files that end in {_ENDINGS}",
        )
    kinds = {_kind_of(each) for each in found}
    if len(kinds) > 1:
        raise UserMistake(
            "The folder has files of several kinds.",
            where=str(path),
            found=_listed([each.name for each in found]),
            expected="files of one kind",
            mend="name one of the files, or a folder with those that belong together",
        )
    return [LabelFile(each, str(each.relative_to(path)), _kind_of(each)) for each in found]


def read_rows_of(file: LabelFile) -> Iterator[FileRow]:
    """The rows of a file in their order.

    Raises:
        UserMistake: it is cut off or damaged, is no such file, or has other fields.
    """
    readers = {NEURONPEDIA: _read_batch, "CSV": _read_csv, "Parquet": _read_parquet}
    return readers[file.kind](file)


def _read_batch(file: LabelFile) -> Iterator[FileRow]:
    with _opened(file) as stream:
        is_first = True
        for number, line in enumerate(_lines(file, stream), start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not content.strip():
                continue
            row = _parsed(file, number, content)
            if is_first:
                _require_fields(file, list(row), _OF_NEURONPEDIA, number)
                is_first = False
            yield _of_batch(number, row)


def _of_batch(number: int, row: Mapping[str, Any]) -> FileRow:
    if missing := [name for name in _OF_NEURONPEDIA if name not in row]:
        return FileRow(number, fault=f"no `{missing[0]}`")
    model, source = row["modelId"], row["layer"]
    if not (isinstance(model, str) and isinstance(source, str)):
        return FileRow(number, fault="`modelId` or `layer` is no text")
    return FileRow(
        line=number,
        feature=row["index"],
        sae=f"{model}/{source}",
        text=row["description"],
        explanation=row.get("notes"),
        explainer=row.get("typeName"),
        author=row.get("authorId"),
        model=row.get("explanationModelName"),
    )


def _parsed(file: LabelFile, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, number, error) from error
    except (ValueError, RecursionError) as error:
        raise _broken(file, number, line, "a JSON object a line") from error
    if not isinstance(row, dict):
        raise _broken(file, number, line, "a JSON object a line")
    return row


def _read_csv(file: LabelFile) -> Iterator[FileRow]:
    with _opened(file) as stream:
        # A BOM, which Excel writes, is no part of the first field's name.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        # Strict: where a quotation is never closed the rest of the file would be one field.
        rows = csv.reader(text, strict=True)
        csv.field_size_limit(_LONGEST_FIELD)
        try:
            header = [name.strip() for name in next(rows, [])]
            if not header:
                return
            _require_fields(file, header, _OF_TABLES, 1)
            for row in rows:
                if row:
                    yield _of_csv(rows.line_num, header, row)
        except UnicodeDecodeError as error:
            raise _not_utf8(file, rows.line_num + 1, error) from error
        except csv.Error as error:
            raise UserMistake(
                "The file is no CSV.",
                where=f"{file.path}, line {rows.line_num}",
                found=str(error),
                expected="fields apart by commas, quoted by double quotation marks",
            ) from error


def _of_csv(number: int, header: Sequence[str], row: Sequence[str]) -> FileRow:
    if len(row) != len(header):
        return FileRow(number, fault=f"{len(row)} fields instead of {len(header)}")
    fields: Iterable[tuple[str, str]] = zip(header, row, strict=True)
    if _OURS in header:
        fields = ((name, _NO_FORMULA.sub("", value)) for name, value in fields)
    return _of_table(number, dict(fields))


def _read_parquet(file: LabelFile) -> Iterator[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file.path) as parquet:
            schema = parquet.schema_arrow
            _require_fields(file, schema.names, _OF_TABLES)
            wanted = [name for name in (*_OF_TABLES, *_MORE_OF_TABLES) if name in schema.names]
            for name in wanted:
                _require_type(file, schema.field(name), is_index=name == "feature")
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield _of_table(number, row)
    except (pa.ArrowException, OSError) as error:
        raise UserMistake(
            "The Parquet file cannot be read: it is damaged, cut off, or none.",
            where=str(file.path),
            found=str(error).splitlines()[0],
        ) from error


def _of_table(number: int, row: Mapping[str, Any]) -> FileRow:
    return FileRow(
        line=number,
        feature=row.get(_FULL_ID) or row["feature"],
        sae=row.get("sae_id") or None,
        text=row["text"],
        explanation=row.get("explanation"),
        explainer=row.get("explainer"),
        author=row.get("author"),
        model=row.get("model"),
    )


def _require_type(file: LabelFile, field: Any, is_index: bool) -> None:
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_text = is_text or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    if not (is_text or (is_index and pa.types.is_integer(kind))):
        raise UserMistake(
            f"The column `{field.name}` is of another type.",
            where=str(file.path),
            found=str(field.type),
            expected="integers or text" if is_index else "text",
        )


def _require_fields(
    file: LabelFile, found: Sequence[str], wanted: Sequence[str], line: int | None = None
) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise UserMistake(
            f"The file has no field {' and no field '.join(f'`{name}`' for name in missing)}.",
            where=str(file.path) + ("" if line is None else f", line {line}"),
            found=_listed([repr(name)[1:-1] for name in found]) or "no field",
            expected=", ".join(wanted),
            mend="of Neuronpedia's files, labels are in those of the folder `explanations`"
            if file.kind == NEURONPEDIA
            else "name the columns so in the first line"
            if file.kind == "CSV"
            else None,
        )


@contextmanager
def _opened(file: LabelFile) -> Iterator[IO[bytes]]:
    """The bytes of the file, unpacked."""
    is_packed = file.path.suffix == ".gz"
    try:
        with file.path.open("rb") as raw:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_packed else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        is_cut = isinstance(error, EOFError)
        raise UserMistake(
            "The file is cut off." if is_cut else "The file is damaged, or not packed by gzip.",
            where=str(file.path),
            found=str(error),
            mend="fetch it again",
        ) from error
    except OSError as error:
        raise UserMistake(
            "The file cannot be read.", where=str(file.path), found=error.strerror or str(error)
        ) from error


def _lines(file: LabelFile, stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of bounded length."""
    number = 0
    while line := stream.readline(_LONGEST_FIELD + 1):
        number += 1
        if len(line) > _LONGEST_FIELD:
            raise UserMistake(
                "A line is longer than any label.",
                where=f"{file.path}, line {number}",
                found=f"more than {_LONGEST_FIELD:,} bytes",
            )
        yield line


def _not_utf8(file: LabelFile, number: int, error: UnicodeDecodeError) -> UserMistake:
    return UserMistake(
        "The file is not UTF-8.",
        where=f"{file.path}, about line {number}"
        if file.kind == "CSV"
        else f"{file.path}, line {number}",
        found=f"byte 0x{error.object[error.start]:02x}",
        expected="UTF-8",
        mend="save it as UTF-8",
    )


def _broken(file: LabelFile, number: int, line: bytes, expected: str) -> UserMistake:
    shown = line.decode(errors="replace").strip()
    return UserMistake(
        "A line cannot be read.",
        where=f"{file.path}, line {number}",
        found=ascii(shown if len(shown) <= 80 else shown[:79] + "…")[1:-1],
        expected=expected,
        mend="fetch or write the file again: it may be cut off",
    )


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    return next((ending for ending in _KINDS if name.endswith(ending)), None)


def _kind_of(path: Path) -> str:
    ending = _ending(path)
    if ending is None:
        raise UserMistake(
            "This is no file of labels, going by its name.",
            where=str(path),
            found=path.name,
            expected=f"a name that ends in {_ENDINGS}",
        )
    return _KINDS[ending]


def name_without_ending(path: Path) -> str:
    """A file's name without what says its kind; of a folder its name."""
    ending = _ending(path)
    return path.name[: -len(ending)] if ending else path.resolve().name


def _natural(path: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece[:18]), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_FIELDS])
    return shown + (", …" if len(names) > _SHOWN_FIELDS else "")
