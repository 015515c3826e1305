"""The rows of text files, JSON lines, Parquet files and hub data sets, one at a time."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import CorpusError
from .chat_text import NoConversationError, Render

if TYPE_CHECKING:
    from .corpus import CorpusSource


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    reason: str
    where: str


def read_rows(source: CorpusSource, render: Render | None) -> Iterator[str | BadRow]:
    """The texts of a source, and in their place the rows that cannot be used.

    Raises:
        CorpusError: the source is not there, or none of its files can be read.
    """
    if source.standard_library:
        from .toy.standard_library import iterate_documents

        yield from iterate_documents(include_tests=source.include_tests)
    elif source.dataset is not None:
        yield from _read_hub(source, render)
    elif source.path is not None:
        for file in ordered_files(source):
            yield from _READERS[file.suffix.lower()](file, source, render)


def ordered_files(source: CorpusSource) -> list[Path]:
    """The files of a corpus on disk in the order in which they are read.

    Raises:
        CorpusError: there are none, or a known one is gone.
    """
    folder = Path(source.path or "")
    files = list_files(folder)
    if not source.known_files or not folder.is_dir():
        return files
    known = [folder / name for name in source.known_files]
    if gone := sorted(str(file) for file in set(known) - set(files)):
        raise CorpusError(
            "A file of the corpus that this run has read is gone.",
            where=gone[0],
            found="nothing" if len(gone) == 1 else f"nothing, there and at {len(gone) - 1} others",
            expected="the files that were there, and perhaps new ones",
            mend="put it back, or collect into another folder with --out",
        )
    return known + [file for file in files if file not in set(known)]


def ordered_names(source: CorpusSource) -> list[str]:
    """The names of those files, from the corpus's folder."""
    return [file.relative_to(source.path or "").as_posix() for file in ordered_files(source)]


def list_files(path: Path) -> list[Path]:
    """The files of a corpus that can be read, by name.

    Raises:
        CorpusError: there are none.
    """
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


def _read_text(file: Path, source: CorpusSource, render: Render | None) -> Iterator[str | BadRow]:
    # Read as bytes, so that one bad byte spoils one document and not the file.
    if render is not None:
        raise CorpusError(
            "A .txt file holds no conversations.",
            where=str(file),
            found="[corpus] chat = true",
            expected=".jsonl or .parquet whose field is a list of messages",
        )
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


def _read_jsonl(file: Path, source: CorpusSource, render: Render | None) -> Iterator[str | BadRow]:
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
                yield _text_of(row, source.text_field, render, where)


def _read_parquet(
    file: Path, source: CorpusSource, render: Render | None
) -> Iterator[str | BadRow]:
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
                yield _text_of_cell(value, source.text_field, render, f"{file}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            "The corpus file cannot be read as Parquet.",
            where=str(file),
            found=_first_line(error),
            mend="copy or download it again",
        ) from error


def _read_hub(source: CorpusSource, render: Render | None) -> Iterator[str | BadRow]:
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
            yield _text_of(row, source.text_field, render, f"{source.dataset}, row {number}")
    except (ValueError, OSError, RuntimeError) as error:
        raise CorpusError(
            "The data set cannot be read.",
            where=f"[corpus] dataset = {source.dataset!r}",
            found=_first_line(error),
            expected="a data set on the hub that this machine can reach",
            mend="check its name, dataset_config, dataset_split and the connection; "
            "a local copy is read with [corpus] path",
        ) from error


def _text_of(row: Any, text_field: str, render: Render | None, where: str) -> str | BadRow:
    if not isinstance(row, dict):
        return BadRow("not a JSON object", where)
    if text_field not in row:
        found = ", ".join(map(str, list(row)[:6]))
        return BadRow(f"without the field {text_field!r}", f"{where}, which has {found}")
    text = row[text_field]
    if render is not None:
        try:
            text = render(text)
        except NoConversationError as error:
            return BadRow(f"whose {text_field!r} is no conversation: {error}", where)
    if not isinstance(text, str):
        return BadRow(f"whose {text_field!r} is not text", where)
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which is no character and has no tokens.
        return BadRow(f"whose {text_field!r} is not valid Unicode", where)
    return text


def _text_of_cell(value: Any, text_field: str, render: Render | None, where: str) -> str | BadRow:
    try:
        return _text_of({text_field: value.as_py()}, text_field, render, where)
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
