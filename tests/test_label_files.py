"""Files of labels by others: what is read of each kind, and what is refused with its place."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.store.errors import UserMistake
from scopenote.store.label_files import (
    FileRow,
    LabelFile,
    find_label_files,
    name_without_ending,
    read_rows_of,
)

ROW = {"modelId": "m", "layer": "1-res", "index": "7", "description": "a word"}
PACKED = gzip.compress(b"".join(json.dumps({**ROW, "index": n}).encode() + b"\n" for n in range(9)))


def read(path: Path) -> list[FileRow]:
    (file,) = find_label_files(path)
    return list(read_rows_of(file))


def refused(path: Path) -> UserMistake:
    with pytest.raises(UserMistake) as caught:
        read(path)
    return caught.value


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def test_all_of_a_neuronpedia_explanation_is_read(written: Any) -> None:
    row = {
        **ROW,
        "id": "c1",
        "notes": "because",
        "authorId": "clk",
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
        "embedding": [0.1],
    }
    file = written("batch-0.jsonl", json.dumps(row).encode())
    assert read(file) == [
        FileRow(
            line=1,
            feature="7",
            sae="m/1-res",
            text="a word",
            explanation="because",
            explainer="oai_token-act-pair",
            author="clk",
            model="gpt-4o-mini",
        )
    ]


def test_a_packed_batch_is_read_like_one_that_is_not(written: Any) -> None:
    packed = read(written("batch-0.jsonl.gz", PACKED))
    assert [row.feature for row in packed] == list(range(9))
    assert read(written("batch-0.jsonl", gzip.decompress(PACKED))) == packed


@pytest.mark.parametrize("cut", [1, 8, 9, 30])
def test_a_truncated_gzip_is_refused(written: Any, cut: int) -> None:
    assert refused(written("batch-0.jsonl.gz", PACKED[:-cut])).what == "The file is cut off."


def test_a_damaged_gzip_is_refused(written: Any) -> None:
    damaged = bytearray(PACKED)
    damaged[-8] ^= 255  # of the checksum
    assert "damaged" in refused(written("batch-0.jsonl.gz", bytes(damaged))).what
    assert "not packed" in refused(written("batch-1.jsonl.gz", b"{}")).what


def test_another_kind_of_batch_is_refused_by_its_fields(written: Any) -> None:
    row = {"modelId": "m", "layer": "s", "index": "1", "tokens": [], "values": []}
    error = refused(written("batch-0.jsonl", json.dumps(row).encode()))
    assert error.what == "The file has no field `description`."
    assert error.found == "modelId, layer, index, tokens, values"
    assert "explanations" in (error.mend or "")


@pytest.mark.parametrize("line", [b'{"modelId": "m', b"[1]", b"null", b"[" * 100_000, b"{}}"])
def test_a_broken_line_is_refused_by_its_number(written: Any, line: bytes) -> None:
    file = written("batch-0.jsonl", json.dumps(ROW).encode() + b"\n\n" + line + b"\n")
    assert refused(file).where == f"{file}, line 3"


def test_a_line_without_end_is_refused_before_it_fills_the_memory(written: Any) -> None:
    error = refused(written("batch-0.jsonl.gz", gzip.compress(b" " * (3 << 20))))
    assert "longer than any label" in error.what


def test_a_row_that_lacks_a_field_is_a_fault_of_its_own(written: Any) -> None:
    lines = [ROW, {**ROW, "layer": None}, {"modelId": "m", "layer": "s", "index": "1"}, ROW]
    rows = read(written("b.jsonl", "\n".join(map(json.dumps, lines)).encode()))
    assert [row.fault for row in rows] == [
        None,
        "`modelId` or `layer` is no text",
        "no `description`",
        None,
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_bytes_that_are_not_utf8_are_refused(written: Any, name: str) -> None:
    lines = {
        "a.jsonl": json.dumps({**ROW, "description": "é"}, ensure_ascii=False),
        "a.csv": "feature,text\n1,é\n",
    }
    error = refused(written(name, lines[name].encode("latin-1")))
    assert error.what == "The file is not UTF-8."
    assert error.found == "byte 0xe9"


def test_a_csv_with_a_bom_and_further_columns_is_read(written: Any) -> None:
    content = 'text,feature,score,author\r\n"Füße, ""fett""\n二",s/7,0.5,ann\r\n,8,,\r\n'
    assert read(written("a.csv", content.encode("utf-8-sig"))) == [
        FileRow(line=3, feature="s/7", text='Füße, "fett"\n二', author="ann"),
        FileRow(line=4, feature="8", text="", author=""),
    ]


def test_a_csv_with_other_columns_is_refused(written: Any) -> None:
    error = refused(written("a.csv", b"index;label\n1;a\n"))
    assert (error.found, error.expected) == ("index;label", "feature, text")


def test_a_csv_row_of_another_length_is_a_fault_of_its_own(written: Any) -> None:
    rows = read(written("a.csv", b"feature,text\n1,a,b\n2\n3,c\n"))
    assert [row.fault for row in rows] == ["3 fields instead of 2", "1 fields instead of 2", None]


def test_a_quotation_that_is_never_closed_is_refused(written: Any) -> None:
    error = refused(written("a.csv", b'feature,text\n1,"a\n2,b\n'))
    assert error.what == "The file is no CSV."


@given(st.lists(st.tuples(st.integers(0, 99), st.text(st.characters(codec="utf-8")))))
def test_whatever_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]]
) -> None:
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    with file.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("feature", "text"), *rows])
    assert [(row.feature, row.text) for row in read(file)] == [(str(n), text) for n, text in rows]


def test_only_in_our_own_csv_the_sign_against_formulas_is_taken_away(written: Any) -> None:
    theirs = read(written("a.csv", b"feature,text\n1,'=1\n"))
    ours = read(written("b.csv", b"feature,text,label_id\n1,'=1,x\n2,''a,x\n3,'a,x\n"))
    assert [row.text for row in theirs] == ["'=1"]
    assert [row.text for row in ours] == ["=1", "'a", "'a"]


def test_parquet_is_read_with_numbers_or_names(tmp_path: Path) -> None:
    numbers = {"feature": [7, None], "sae_id": ["m/s", "m/s"], "text": ["a", None]}
    pq.write_table(pa.table(numbers), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        FileRow(line=1, feature=7, sae="m/s", text="a"),
        FileRow(line=2, feature=None, sae="m/s", text=None),
    ]
    names = {"feature": pa.array(["s/7"]).dictionary_encode(), "text": ["a"], "x": [[1]]}
    pq.write_table(pa.table(names), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == [FileRow(line=1, feature="s/7", text="a")]


def test_a_neuron_goes_by_its_full_name_where_there_is_one(tmp_path: Path) -> None:
    columns = {"feature_id": ["m/1-mlp-neurons/7+"], "feature": [14], "text": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0].feature == "m/1-mlp-neurons/7+"


def test_parquet_of_other_columns_or_types_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"feature": [1.0], "text": ["a"]}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").found == "double"
    pq.write_table(pa.table({"feature": [1], "label": ["a"]}), tmp_path / "b.parquet")
    assert refused(tmp_path / "b.parquet").what == "The file has no field `text`."


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"feature": [1] * 999, "text": ["a"] * 999}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused(tmp_path / "a.parquet").what


def test_in_the_bulk_layout_only_explanations_are_taken(tmp_path: Path) -> None:
    source = tmp_path / "v1" / "m" / "s"
    for kind in ("explanations", "activations", "features"):
        (source / kind).mkdir(parents=True)
        for n in (0, 2, 10):
            (source / kind / f"batch-{n}.jsonl.gz").write_bytes(PACKED)
    (source / "explanations" / ".batch-1.jsonl.gz").write_bytes(b"")
    (source / "source.jsonl").write_bytes(b"{}")
    (tmp_path / "manifest.json").write_text("{}")
    found = find_label_files(tmp_path)
    assert [file.name for file in found] == [
        f"v1/m/s/explanations/batch-{n}.jsonl.gz" for n in (0, 2, 10)
    ]


def test_a_folder_of_one_kind_is_read_and_of_several_is_refused(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "notes.txt"):
        (tmp_path / name).write_text("feature,text\n")
    assert [file.name for file in find_label_files(tmp_path)] == ["a.csv", "b.csv"]
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(UserMistake, match="several kinds"):
        find_label_files(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "notes.txt", "folder"])
def test_what_is_no_file_of_labels_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserMistake):
        find_label_files(tmp_path / name)


def test_a_file_is_called_without_its_ending() -> None:
    names = ["a.b.jsonl.gz", "LABELS.CSV", "labels"]
    assert [name_without_ending(Path(name)) for name in names] == ["a.b", "LABELS", "labels"]


def test_the_kind_goes_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "A.Parquet").write_bytes(b"PAR1")
    assert find_label_files(tmp_path / "A.Parquet") == [
        LabelFile(tmp_path / "A.Parquet", "A.Parquet", "Parquet")
    ]
