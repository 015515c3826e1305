"""Text, streamed: from files, from a hub data set, or from the user's own Python.

Rows that cannot be used are counted with an example of each kind and skipped; when they are
more than the allowed share, reading stops. Nothing is held but the row at hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..store.errors import CorpusError
from ..store.splits import document_id

TextUnit = Literal["paragraph", "line", "file"]

# Before this many rows the share of bad ones says little, so it is judged at the end only.
_ROWS_BEFORE_JUDGING = 10_000


@dataclass(frozen=True, slots=True)
class CorpusSource:
    """Which text to read; exactly one of path, dataset and standard_library is given.

    Attributes:
        path: a .txt, .jsonl or .parquet file, or a folder of them.
        dataset: a data set on the hub, streamed.
        standard_library: the source and documentation of the running Python.
        include_tests: of the standard library, the test suites too.
        text_field: the field or column that holds the text.
        text_unit: what one document of a .txt file is.
        max_bad_share: the share of unusable rows above which reading fails.
    """

    path: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    revision: str | None = None
    standard_library: bool = False
    include_tests: bool = False
    text_field: str = "text"
    text_unit: TextUnit = "paragraph"
    max_bad_share: float = 0.01

    def __str__(self) -> str:
        if self.standard_library:
            return "the standard library of this Python"
        return self.path or f"data set {self.dataset}"


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the name its content gives it."""

    text: str
    doc_id: str


@dataclass(slots=True)
class RowCounts:
    """What became of the rows read so far.

    Attributes:
        good: rows that became documents.
        empty: rows without any text, which are skipped but not counted as bad.
        bad: unusable rows, by reason.
        examples: where the first bad row of each reason stands.
    """

    good: int = 0
    empty: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def n_bad(self) -> int:
        """Unusable rows of all reasons."""
        return sum(self.bad.values())

    def add_bad(self, reason: str, where: str) -> None:
        """Counts a row that cannot be used."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        self.examples.setdefault(reason, where)

    def describe_bad(self) -> str:
        """The bad rows by reason, each with the place of the first."""
        return "; ".join(
            f"{n:,} {why} (first: {self.examples[why]})" for why, n in self.bad.items()
        )


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    reason: str
    where: str


def read_documents(source: CorpusSource, counts: RowCounts) -> Iterator[Document]:
    """The corpus's documents, in its own order; `counts` is kept up as they are read.

    Raises:
        CorpusError: the corpus is not there, has no text, or too many of its rows are bad.
    """
    for row in _read_rows(source):
        if isinstance(row, BadRow):
            counts.add_bad(row.reason, row.where)
            _judge(source, counts, _ROWS_BEFORE_JUDGING)
        elif not row.strip():
            counts.empty += 1
        else:
            counts.good += 1
            yield Document(row, document_id(row))
    _judge(source, counts, 0)
    if counts.good == 0:
        raise CorpusError(
            "The corpus has no text.",
            where=str(source),
            found=f"{counts.empty + counts.n_bad} rows, none with text",
            expected="at least one document",
            mend="check [corpus] path, dataset_split and text_field",
        )


def _judge(source: CorpusSource, counts: RowCounts, least_rows: int) -> None:
    n_rows = counts.good + counts.empty + counts.n_bad
    if n_rows < least_rows or counts.n_bad <= source.max_bad_share * n_rows:
        return
    raise CorpusError(
        "Too many rows of the corpus cannot be used.",
        where=str(source),
        found=f"{counts.n_bad:,} of {n_rows:,}: {counts.describe_bad()}",
        expected=f"at most {source.max_bad_share:.1%} bad rows",
        mend="mend the rows, or allow more with [corpus] max_bad_share",
    )


def _read_rows(source: CorpusSource) -> Iterator[str | BadRow]:
    if source.standard_library:
        from .toy.standard_library import iterate_documents

        yield from iterate_documents(include_tests=source.include_tests)
    elif source.dataset is not None:
        yield from _read_hub(source)
    else:
        assert source.path is not None
        for file in _list_files(Path(source.path)):
            yield from _READERS[file.suffix](file, source)


def _list_files(path: Path) -> list[Path]:
    kinds = ", ".join(_READERS)
    if path.is_file():
        if path.suffix in _READERS:
            return [path]
        raise CorpusError(
            "The corpus file is of a kind that Scopenote does not read.",
            where=str(path),
            found=f"{path.suffix or 'no ending'}",
            expected=kinds,
        )
    if not path.is_dir():
        raise CorpusError(
            "The corpus does not exist.",
            where=str(path),
            expected=f"a file ({kinds}) or a folder of them",
            mend="correct [corpus] path; relative paths start at the configuration file's folder",
        )
    found = sorted(file for file in path.rglob("*") if file.is_file())
    usable = [file for file in found if file.suffix in _READERS]
    if not usable:
        raise CorpusError(
            "The corpus folder has no file that Scopenote reads.",
            where=str(path),
            found=", ".join(sorted({file.suffix or file.name for file in found})) or "no files",
            expected=kinds,
        )
    return usable


def _read_text(file: Path, source: CorpusSource) -> Iterator[str | BadRow]:
    # Read as bytes, so that one bad byte spoils one document and not the file.
    with _open(file) as lines:
        if source.text_unit == "file":
            yield _decode(lines.read(), f"{file}")
            return
        gathered: list[bytes] = []
        first = 1
        for number, line in enumerate(lines, start=1):
            if source.text_unit == "line":
                yield _decode(line.rstrip(b"\r\n"), f"{file}:{number}")
            elif line.strip():
                first = first if gathered else number
                gathered.append(line)
            elif gathered:
                yield _decode(b"".join(gathered), f"{file}:{first}")
                gathered = []
        if gathered:
            yield _decode(b"".join(gathered), f"{file}:{first}")


def _read_jsonl(file: Path, source: CorpusSource) -> Iterator[str | BadRow]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                yield BadRow("not UTF-8", where)
            except ValueError:
                yield BadRow("not JSON", where)
            else:
                yield _text_of(row, source.text_field, where)


def _read_parquet(file: Path, source: CorpusSource) -> Iterator[str | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(
            "The corpus file cannot be read as Parquet.", where=str(file), found=str(error)
        ) from error
    with table:
        if source.text_field not in table.schema_arrow.names:
            raise CorpusError(
                "The corpus file has no column of that name.",
                where=str(file),
                found=", ".join(table.schema_arrow.names),
                expected=source.text_field,
                mend="set [corpus] text_field",
            )
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[source.text_field]):
            for value in batch.column(0).to_pylist():
                yield _text_of(
                    {source.text_field: value}, source.text_field, f"{file}, row {number}"
                )
                number += 1


def _read_hub(source: CorpusSource) -> Iterator[str | BadRow]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(
            source.dataset,
            source.dataset_config,
            split=source.dataset_split,
            revision=source.revision,
            streaming=True,
        )
        for number, row in enumerate(rows):
            yield _text_of(row, source.text_field, f"{source.dataset}, row {number}")
    except (DatasetNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise CorpusError(
            "The data set cannot be read.",
            where=f"[corpus] dataset = {source.dataset!r}",
            found=str(error).splitlines()[0],
            expected="a data set on the hub that this machine can reach",
            mend="check its name, dataset_config, dataset_split and the connection; "
            "a local copy is read with [corpus] path",
        ) from error


def _text_of(row: Any, text_field: str, where: str) -> str | BadRow:
    if not isinstance(row, dict):
        return BadRow("not a JSON object", where)
    if text_field not in row:
        found = ", ".join(map(str, list(row)[:6]))
        return BadRow(f"without the field {text_field!r}", f"{where}, which has {found}")
    text = row[text_field]
    if not isinstance(text, str):
        return BadRow(f"whose {text_field!r} is not text", where)
    return text


def _decode(content: bytes, where: str) -> str | BadRow:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return BadRow("not UTF-8", where)


def _open(file: Path) -> Any:
    try:
        return file.open("rb")
    except OSError as error:
        raise CorpusError(
            "The corpus file cannot be opened.", where=str(file), found=error.strerror
        ) from error


_READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def corpus_source_state(source: CorpusSource, saes: list[Any], max_tokens: int | None) -> str:
    """A description that changes when the text or the SAEs may have changed.

    Of files the size and time of writing, so that a run that has nothing to do need not read
    them; of a hub data set its name and revision.
    """
    files = _list_files(Path(source.path)) if source.path else []
    files += [sae.path for sae in saes]
    return json.dumps(
        {
            "corpus": str(source),
            "python": sys.version if source.standard_library else None,
            "options": [str(getattr(source, name)) for name in source.__slots__],
            "files": [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "saes": [sae.sae_id for sae in saes],
            "max_tokens": max_tokens,
        }
    )
