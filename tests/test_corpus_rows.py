"""Rows of text: every kind of file, and every way in which one can be wrong."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scopenote.extract.corpus import (
    CorpusSource,
    RowCounts,
    read_documents,
)
from scopenote.extract.corpus_rows import ordered_names
from scopenote.store.errors import CorpusError

from .text_files import read, refuse, write, write_jsonl, write_parquet

# --- what is read -------------------------------------------------------------------------


def test_paragraphs_of_a_text_file_are_documents_between_blank_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "\n\none\nstill one\n\n \t\n  two\n\n\nthree")
    assert read(file) == ["one\nstill one", "  two", "three"]


def test_lines_of_a_text_file_can_be_documents(tmp_path: Path) -> None:
    counts = RowCounts()
    file = write(tmp_path / "a.txt", "one\n\n  two \nthree")
    assert read(file, counts, text_unit="line") == ["one", "  two ", "three"]
    assert (counts.good, counts.empty) == (3, 1)


def test_a_whole_text_file_can_be_a_document(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one\n\ntwo\n")
    write(tmp_path / "b.txt", "three")
    assert read(tmp_path, text_unit="file") == ["one\n\ntwo", "three"]


@pytest.mark.parametrize("text_unit", ["paragraph", "line", "file"])
def test_line_endings_and_byte_order_marks_do_not_change_the_documents(
    tmp_path: Path, text_unit: str
) -> None:
    text = "é one\nmore\n\ntwo\n"
    plain = read(write(tmp_path / "plain.txt", text), text_unit=text_unit)
    windows = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    assert read(write(tmp_path / "windows.txt", windows), text_unit=text_unit) == plain
    assert "\ufeff" not in plain[0]


def test_jsonl_gives_the_text_field_of_each_line(tmp_path: Path) -> None:
    rows = [{"text": "one\n\nsame", "body": "x"}, {"text": "zwei ü"}, {"text": "one\n\nsame"}]
    assert read(write_jsonl(tmp_path / "a.jsonl", rows)) == ["one\n\nsame", "zwei ü", "one\n\nsame"]


def test_jsonl_may_have_blank_lines_a_byte_order_mark_and_windows_line_endings(
    tmp_path: Path,
) -> None:
    content = b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}'
    counts = RowCounts()
    assert read(write(tmp_path / "a.jsonl", content), counts) == ["one", "two"]
    assert counts == RowCounts(good=2)


def test_another_field_can_hold_the_text(tmp_path: Path) -> None:
    rows = [{"text": "no", "body": "yes"}]
    assert read(write_jsonl(tmp_path / "a.jsonl", rows), text_field="body") == ["yes"]
    columns = {"text": ["no"], "body": ["yes"]}
    assert read(write_parquet(tmp_path / "a.parquet", columns), text_field="body") == ["yes"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_gives_the_text_column_in_order(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [f"text {i % 900}" for i in range(2500)]
    file = write_parquet(tmp_path / "a.parquet", {"n": range(2500), "text": pa.array(texts, kind)})
    assert read(file) == texts


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "third")
    write(tmp_path / "a/z.txt", "second")
    write_jsonl(tmp_path / "a/b.JSONL", [{"text": "first"}])
    write_parquet(tmp_path / "c.parquet", {"text": ["fourth"]})
    write(tmp_path / "README.md", "not read")
    assert read(tmp_path) == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_the_first_rows_of_a_huge_file_come_without_reading_the_rest(
    tmp_path: Path, kind: str
) -> None:
    # A hole of a gigabyte behind the first rows; of Parquet, a row group of 60 MB.
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        texts = [os.urandom(15_000).hex() for _ in range(20)] * 100
        table = pa.table({"text": texts})
        pq.write_table(table, file, use_dictionary=False, compression=None, write_batch_size=16)
    else:
        write(file, "one\n\ntwo\n\n" if kind == "txt" else '{"text": "one"}\n{"text": "two"}\n')
        os.truncate(file, 1 << 30)
    documents = read_documents(CorpusSource(path=str(file)), RowCounts())
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        assert len(list(islice(documents, 2))) == 2
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        assert pa.total_allocated_bytes() - before < 30_000_000
    finally:
        tracemalloc.stop()


# --- bad rows -----------------------------------------------------------------------------

GOOD = '{"text": "good"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"just a string"', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ('{"body": "x", "n": 1}', "without the field 'text'"),
        ('{"text": 3}', "whose 'text' is not text"),
        ('{"text": null}', "whose 'text' is not text"),
        ('{"text": ["a"]}', "whose 'text' is not text"),
        ('{"text": "half \\ud800"}', "whose 'text' is not valid Unicode"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        ('{"text": "x"}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_bad_line_of_jsonl_is_counted_with_its_reason_and_place(
    tmp_path: Path, line: str | bytes, reason: str
) -> None:
    content = line.encode() if isinstance(line, str) else line
    good = f"{GOOD}\n".encode()
    counts = RowCounts()
    file = write(tmp_path / "a.jsonl", good * 2 + content + b"\n" + good * 200)
    assert read(file, counts) == ["good"] * 202
    assert counts.bad == {reason: 1}
    assert counts.examples[reason].startswith(f"{file}:3")


def test_a_missing_field_is_told_with_those_there(tmp_path: Path) -> None:
    refused = refuse(write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "n": 1}]))
    assert "which has body, n" in (refused.found or "")


@pytest.mark.parametrize(
    ("text_unit", "place"), [("paragraph", "a.txt:3"), ("line", "a.txt:4"), ("file", "a.txt")]
)
def test_text_that_is_not_utf_8_is_counted_with_its_place(
    tmp_path: Path, text_unit: str, place: str
) -> None:
    write(tmp_path / "a.txt", b"one\n\ntwo\ncaf\xe9\n\nthree\n")
    write(tmp_path / "b.txt", "good")
    counts = RowCounts()
    assert read(tmp_path, counts, text_unit=text_unit, max_bad_share=1)[-1] == "good"
    assert counts.bad == {"not UTF-8": 1}
    assert counts.examples["not UTF-8"] == str(tmp_path / place)


def test_a_bad_cell_of_parquet_is_counted_with_its_row(tmp_path: Path) -> None:
    cells = pa.array([b"good"] * 300 + [b"caf\xe9", None], pa.binary())
    text = pa.StringArray.from_buffers(len(cells), *cells.buffers()[1:], cells.buffers()[0])
    file = write_parquet(tmp_path / "a.parquet", {"text": text})
    counts = RowCounts()
    assert read(file, counts) == ["good"] * 300
    assert counts.bad == {"not UTF-8": 1, "whose 'text' is not text": 1}
    assert counts.examples["not UTF-8"] == f"{file}, row 301"


def test_a_column_that_is_not_text_makes_every_row_bad(tmp_path: Path) -> None:
    refused = refuse(write_parquet(tmp_path / "a.parquet", {"text": [1, 2, 3]}))
    assert (refused.found or "").startswith("3 of 3: 3 whose 'text' is not text")


# --- files that cannot be read --------------------------------------------------------------


def test_files_that_are_known_come_first_and_new_ones_after_them(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for name in ("b.txt", "a.txt", "new/c.txt", "0.txt"):
        write(tmp_path / name, name)
    source = CorpusSource(path=str(tmp_path), known_files=("b.txt", "a.txt"))
    assert ordered_names(source) == ["b.txt", "a.txt", "0.txt", "new/c.txt"]
    assert [document.text for document in read_documents(source, RowCounts())] == [
        "b.txt",
        "a.txt",
        "0.txt",
        "new/c.txt",
    ]


def test_a_known_file_that_is_gone_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    source = CorpusSource(path=str(tmp_path), known_files=("a.txt", "gone.txt"))
    with pytest.raises(CorpusError, match=r"is gone(.|\n)*gone\.txt"):
        ordered_names(source)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refused = refuse(tmp_path / "no-such.jsonl")
    assert refused.what == "The corpus does not exist."
    assert refused.where == str(tmp_path / "no-such.jsonl")


@pytest.mark.parametrize(("name", "found"), [("a.csv", ".csv"), ("README", "no ending")])
def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(
    tmp_path: Path, name: str, found: str
) -> None:
    refused = refuse(write(tmp_path / name, "text"))
    assert (refused.found, refused.expected) == (found, ".txt, .jsonl, .parquet")


def test_a_folder_with_nothing_to_read_says_what_is_in_it(tmp_path: Path) -> None:
    assert refuse(tmp_path).found == "no files"
    for name in ("a.csv", "b.csv", "c.md", "LICENSE"):
        write(tmp_path / "deep" / name, "text")
    assert refuse(tmp_path).found == ".csv, .md, LICENSE"


def test_a_file_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is forbidden to root, so the system's refusal is played.
    def forbid(file: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    file = write(tmp_path / "a.txt", "text")
    monkeypatch.setattr(Path, "open", forbid)
    refused = refuse(file)
    assert (refused.where, refused.found) == (str(file), "Permission denied")


def test_parquet_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    refused = refuse(write_parquet(tmp_path / "a.parquet", {"id": [1], "body": ["x"]}))
    assert (refused.found, refused.expected) == ("id, body", "text")
    assert "text_field" in (refused.mend or "")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    refused = refuse(write(tmp_path / "a.parquet", "not parquet"))
    assert refused.where == str(tmp_path / "a.parquet")


def test_parquet_damaged_in_its_middle_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"text": [f"text {i}" for i in range(20_000)]})
    content = bytearray(file.read_bytes())
    quarter = len(content) // 4
    content[quarter : 2 * quarter] = b"\xff" * quarter
    file.write_bytes(content)
    refused = refuse(file)
    assert refused.what == "The corpus file cannot be read as Parquet."
    assert refused.found


# --- data sets ----------------------------------------------------------------------------


def test_a_data_set_is_streamed_in_its_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"text {i}"} for i in range(5)])
    source = CorpusSource(dataset=str(tmp_path))
    texts = [d.text for d in read_documents(source, RowCounts())]
    assert texts == [f"text {i}" for i in range(5)]


def refuse_data_set(**options: Any) -> CorpusError:
    with pytest.raises(CorpusError) as refused:
        list(read_documents(CorpusSource(**options), RowCounts()))
    return refused.value


def test_a_split_that_a_data_set_lacks_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    refused = refuse_data_set(dataset=str(tmp_path), dataset_split="no-such-split")
    assert "no-such-split" in (refused.found or "")
    assert "dataset_split" in (refused.mend or "")


def test_a_data_set_without_the_field_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"body": "a"}])
    refused = refuse_data_set(dataset=str(tmp_path))
    assert "without the field 'text'" in (refused.found or "")
    assert "which has body" in (refused.found or "")


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach 'someone/texts' on the Hub (LocalEntryNotFoundError)"),
        FileNotFoundError("Dataset 'someone/texts' doesn't exist on the Hub\nor is private"),
        ValueError("BuilderConfig 'x' not found."),
        RuntimeError("Dataset scripts are no longer supported"),
        OSError(""),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_hub_that_does_not_give_the_data_set_is_an_error_of_the_user(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("datasets.load_dataset", fail)
    refused = refuse_data_set(dataset="someone/texts")
    assert refused.found == (str(failure).splitlines() or ["OSError"])[0]
    assert "someone/texts" in (refused.where or "")


def test_a_connection_lost_on_the_way_is_an_error_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(*_: object, **__: object) -> Iterable[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("lost")

    monkeypatch.setattr("datasets.load_dataset", rows)
    documents = read_documents(CorpusSource(dataset="someone/texts"), RowCounts())
    assert next(documents).text == "one"
    with pytest.raises(CorpusError, match="lost"):
        next(documents)
