"""Text, streamed: from files, from a hub data set, or from the user's own Python.

Rows that cannot be used are counted with an example of each kind and skipped; when they are
more than the allowed share, reading stops. Nothing is held but the row at hand.
"""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..store.errors import CorpusError
from ..store.splits import document_id

if TYPE_CHECKING:
    from .sae_sources import SaeSource

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

    @property
    def n_rows(self) -> int:
        """All rows read."""
        return self.good + self.empty + self.n_bad

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
            if counts.n_rows >= _ROWS_BEFORE_JUDGING:
                check_bad_share(source, counts)
        elif not row.strip():
            counts.empty += 1
        else:
            counts.good += 1
            yield Document(row, document_id(row))
    check_bad_share(source, counts)
    if counts.good == 0:
        raise CorpusError(
            "The corpus has no text.",
            where=str(source),
            found=f"{counts.n_rows:,} rows, none with text",
            expected="at least one document",
            mend="check [corpus] path, dataset_split and text_field",
        )


def check_bad_share(source: CorpusSource, counts: RowCounts) -> None:
    """Judges the rows read; for a reader that stops before the corpus ends.

    Raises:
        CorpusError: more of them are bad than the source allows.
    """
    if counts.n_bad <= source.max_bad_share * counts.n_rows:
        return
    raise CorpusError(
        "Too many rows of the corpus cannot be used.",
        where=str(source),
        found=f"{counts.n_bad:,} of {counts.n_rows:,}: {counts.describe_bad()}",
        expected=f"at most {source.max_bad_share:.1%} bad rows",
        mend="mend the rows, or allow more with [corpus] max_bad_share",
    )


def _read_rows(source: CorpusSource) -> Iterator[str | BadRow]:
    if source.standard_library:
        from .toy.standard_library import iterate_documents

        yield from iterate_documents(include_tests=source.include_tests)
    elif source.dataset is not None:
        yield from _read_hub(source)
    elif source.path is not None:
        for file in _list_files(Path(source.path)):
            yield from _READERS[file.suffix.lower()](file, source)


def _list_files(path: Path) -> list[Path]:
    kinds = ", ".join(_READERS)
    if path.is_file():
        if path.suffix.lower() in _READERS:
            return [path]
        raise CorpusError(
            "The corpus file is of a kind that Scopenote does not read.",
            where=str(path),
            found=path.suffix or "no ending",
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
    usable = [file for file in found if file.suffix.lower() in _READERS]
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
            yield _decode(b"".join(lines), f"{file}")
        elif source.text_unit == "line":
            for number, line in enumerate(lines, start=1):
                yield _decode(line, f"{file}:{number}")
        else:
            yield from _join_paragraphs(file, lines)


def _join_paragraphs(file: Path, lines: Iterator[bytes]) -> Iterator[str | BadRow]:
    gathered: list[bytes] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        if line.strip():
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
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                yield BadRow("not UTF-8", where)
            except (ValueError, RecursionError):
                yield BadRow("not JSON", where)
            else:
                yield _text_of(row, source.text_field, where)


def _read_parquet(file: Path, source: CorpusSource) -> Iterator[str | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Page by page: by default a row group's whole column would be read ahead.
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
            if source.text_field not in table.schema_arrow.names:
                raise CorpusError(
                    "The corpus file has no column of that name.",
                    where=str(file),
                    found=", ".join(table.schema_arrow.names),
                    expected=source.text_field,
                    mend="set [corpus] text_field",
                )
            values = (
                value
                for batch in table.iter_batches(batch_size=256, columns=[source.text_field])
                for value in batch.column(0)
            )
            for number, value in enumerate(values, start=1):
                yield _text_of_cell(value, source.text_field, f"{file}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            "The corpus file cannot be read as Parquet.",
            where=str(file),
            found=_first_line(error),
            mend="copy or download it again",
        ) from error


def _read_hub(source: CorpusSource) -> Iterator[str | BadRow]:
    from datasets import load_dataset

    # The library raises these for whatever the hub or a row group answers.
    try:
        rows = load_dataset(
            source.dataset,
            source.dataset_config,
            split=source.dataset_split,
            revision=source.revision,
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            yield _text_of(row, source.text_field, f"{source.dataset}, row {number}")
    except (ValueError, OSError, RuntimeError) as error:
        raise CorpusError(
            "The data set cannot be read.",
            where=f"[corpus] dataset = {source.dataset!r}",
            found=_first_line(error),
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
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which is no character and has no tokens.
        return BadRow(f"whose {text_field!r} is not valid Unicode", where)
    return text


def _text_of_cell(value: Any, text_field: str, where: str) -> str | BadRow:
    try:
        return _text_of({text_field: value.as_py()}, text_field, where)
    except UnicodeDecodeError:
        return BadRow("not UTF-8", where)


def _decode(content: bytes, where: str) -> str | BadRow:
    # However a file ends its lines, the same text is the same document.
    try:
        return content.decode("utf-8").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError:
        return BadRow("not UTF-8", where)


@contextmanager
def _open(file: Path) -> Iterator[Iterator[bytes]]:
    """The file's lines, without a byte order mark."""
    try:
        opened = file.open("rb")
    except OSError as error:
        raise CorpusError(
            "The corpus file cannot be opened.", where=str(file), found=error.strerror
        ) from error
    with opened:
        if opened.read(len(BOM_UTF8)) != BOM_UTF8:
            opened.seek(0)
        yield opened


def _first_line(error: Exception) -> str:
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


_READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def corpus_source_state(
    source: CorpusSource, saes: Sequence[SaeSource], max_tokens: int | None
) -> str:
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
