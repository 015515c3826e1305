"""A corpus as a whole: its documents, how many rows may be bad, whether it has changed."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from scopenote.extract.corpus import (
    CorpusSource,
    RowCounts,
    check_bad_share,
    corpus_source_state,
    read_documents,
)
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.sites import Site
from scopenote.store.errors import CorpusError
from scopenote.store.splits import document_id

from .text_files import read, refuse, write, write_jsonl, write_parquet


def test_rows_without_text_are_skipped_and_are_not_bad(tmp_path: Path) -> None:
    counts = RowCounts()
    rows = [{"text": ""}, {"text": "one"}, {"text": " \n\t"}]
    assert read(write_jsonl(tmp_path / "a.jsonl", rows), counts) == ["one"]
    assert (counts.good, counts.empty, counts.n_bad, counts.n_rows) == (1, 2, 0, 3)


def test_a_document_is_named_by_its_content(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\n\ntwo\n\none")
    documents = list(read_documents(CorpusSource(path=str(file)), RowCounts()))
    assert [d.doc_id for d in documents] == [document_id(t) for t in ("one", "two", "one")]


@pytest.mark.slow
def test_the_standard_library_is_a_corpus() -> None:
    documents = read_documents(CorpusSource(standard_library=True), RowCounts())
    assert all(document.text.strip() for document in islice(documents, 20))


def with_bad(n_good: int, n_bad: int) -> list[object]:
    return [{"text": "good"}] * n_good + ["bad"] * n_bad


def test_one_bad_row_in_a_hundred_is_allowed(tmp_path: Path) -> None:
    assert len(read(write_jsonl(tmp_path / "a.jsonl", with_bad(99, 1)))) == 99


def test_more_than_one_bad_row_in_a_hundred_is_an_error_that_counts_them(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [*with_bad(196, 2), {"body": "x"}])
    refused = refuse(file)
    assert refused.found == (
        f"3 of 199: 2 not a JSON object (first: {file}:197); "
        f"1 without the field 'text' (first: {file}:199, which has body)"
    )
    assert refused.expected == "at most 1.0% bad rows"
    assert "max_bad_share" in (refused.mend or "")


def test_more_bad_rows_can_be_allowed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", with_bad(5, 5))
    assert read(file, max_bad_share=0.5) == ["good"] * 5
    refuse(file, max_bad_share=0.49)


def test_a_long_bad_file_is_given_up_before_its_end(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", "bad\n" * 30_000)
    counts = RowCounts()
    with pytest.raises(CorpusError):
        read(file, counts)
    assert counts.n_rows == 10_000


def test_a_few_bad_rows_at_the_beginning_do_not_end_the_reading(tmp_path: Path) -> None:
    rows = ["bad"] * 5 + [{"text": "good"}] * 995
    assert len(read(write_jsonl(tmp_path / "a.jsonl", rows))) == 995


def test_a_reader_that_stops_early_can_judge_what_it_read(tmp_path: Path) -> None:
    source = CorpusSource(path=str(write_jsonl(tmp_path / "a.jsonl", with_bad(50, 50)[::-1])))
    counts = RowCounts()
    assert len(list(islice(read_documents(source, counts), 10))) == 10
    with pytest.raises(CorpusError) as refused:
        check_bad_share(source, counts)
    assert (refused.value.found or "").startswith("50 of 60: ")


@pytest.mark.parametrize("content", ["", "\n \n\n\t\n", "\ufeff"])
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_a_corpus_without_text_is_refused(tmp_path: Path, content: str, ending: str) -> None:
    file = write(tmp_path / f"a.{ending}", content)
    refused = refuse(file)
    assert refused.what == "The corpus has no text."
    assert refused.where == str(file)


def test_empty_rows_alone_are_told_by_their_number(tmp_path: Path) -> None:
    refused = refuse(write_jsonl(tmp_path / "a.jsonl", [{"text": " "}] * 3))
    assert refused.found == "3 rows, none with text"


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    columns = {"text": pa.array([], pa.string())}
    assert "no text" in refuse(write_parquet(tmp_path / "a.parquet", columns)).what


def test_the_state_changes_when_a_file_does(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one")
    source = CorpusSource(path=str(tmp_path))
    before = corpus_source_state(source, [], None)
    assert corpus_source_state(source, [], None) == before
    os.utime(file, ns=(0, 0))
    touched = corpus_source_state(source, [], None)
    write(tmp_path / "b.txt", "two")
    more = corpus_source_state(source, [], None)
    assert len({before, touched, more}) == 3


def test_the_state_changes_with_every_option_and_sae(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one")
    sae = SaeSource("m/1-res-1k", file, Site(1, "res"), None, str(file))
    path = str(file)
    states = [
        corpus_source_state(CorpusSource(path=path), [], None),
        corpus_source_state(CorpusSource(path=path), [], 1000),
        corpus_source_state(CorpusSource(path=path), [sae], None),
        corpus_source_state(CorpusSource(path=path, text_unit="line"), [], None),
        corpus_source_state(CorpusSource(path=path, max_bad_share=0.5), [], None),
        corpus_source_state(CorpusSource(dataset="a/b"), [], None),
        corpus_source_state(CorpusSource(dataset="a/b", revision="v2"), [], None),
        corpus_source_state(CorpusSource(standard_library=True), [], None),
    ]
    assert len(set(states)) == len(states)


def test_the_state_of_a_corpus_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        corpus_source_state(CorpusSource(path=str(tmp_path / "gone")), [], None)
