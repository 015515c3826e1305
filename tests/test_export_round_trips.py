"""Exports read again by others: everything comes back as it was."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.store.current_features import refresh_current_features
from scopenote.store.export_choice import TABLES
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.run_folder import RunFolder
from scopenote.store.splits import SPLITS

from .exported_runs import Rows, export, parquet, rows_of
from .hostile_run import LABELS, make_hostile_run

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def exported(hostile: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each format."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        kind: export(hostile, folder / kind, kind)
        for kind in ("dataset", "parquet", "jsonl", "csv")
    }


def as_written(rows: Rows) -> Rows:
    """With times as files without a type for them have them."""
    return [
        {
            name: value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def same(found: Rows, expected: Rows) -> bool:
    """Floats of single precision may come back as doubles that round to the same."""
    return len(found) == len(expected) and all(map(same_row, found, expected))


def same_row(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    assert found.keys() == expected.keys()
    for name in expected:
        assert same_value(found[name], expected[name]), (name, found[name], expected[name])
    return True


def same_value(found: Any, expected: Any) -> bool:
    if expected is None:
        return found is None or found != found  # NaN and NaT are not equal to themselves
    if isinstance(expected, list):
        found = found.tolist() if hasattr(found, "tolist") else found
        return len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-7)
    return bool(found == expected)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb"])
def test_parquet_comes_back_row_for_row(
    exported: dict[str, Path], hostile: RunFolder, name: str, reader: str
) -> None:
    file = exported["parquet"] / f"{name}.parquet"
    assert same(read_with(reader, file), rows_of(hostile, name))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb", "json"])
def test_json_lines_come_back_row_for_row(
    exported: dict[str, Path], hostile: RunFolder, name: str, reader: str
) -> None:
    file = exported["jsonl"] / f"{name}.jsonl"
    assert same(read_with(reader, file), as_written(rows_of(hostile, name)))


def read_with(reader: str, file: Path) -> Rows:
    if reader == "pandas":
        import pandas

        if file.suffix == ".parquet":
            return to_python(pandas.read_parquet(file).to_dict("records"))
        lines = pandas.read_json(file, lines=True, dtype=False)
        return to_python(lines.to_dict("records"))
    if reader == "polars":
        import polars

        if file.suffix == ".parquet":
            return polars.read_parquet(file).to_dicts()
        return polars.read_ndjson(file, infer_schema_length=None).to_dicts()
    if reader == "json":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        if file.suffix == ".parquet":
            answer = connection.sql(f"FROM '{file}'")
        else:
            texts = (
                "sample_size = -1, convert_strings_to_integers = false, "
                "timestampformat = 'none', dateformat = 'none'"
            )
            answer = connection.sql(f"FROM read_json('{file}', {texts})")
        return answer.to_arrow_table().to_pylist()


def to_python(rows: Rows) -> Rows:
    return [
        {
            name: value.to_pydatetime() if hasattr(value, "to_pydatetime") else value
            for name, value in row.items()
        }
        for row in rows
    ]


def unguarded(text: str) -> str:
    return text.removeprefix("'")


def csv_rows(file: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(10**8)
    with file.open(encoding="utf-8", newline="") as handle:
        yield from csv.DictReader(handle)


def from_cell(cell: str, expected: Any) -> Any:
    """What a cell says, of the type that is expected."""
    if expected is None:
        return None if cell == "" else cell
    if isinstance(expected, bool):
        return {"true": True, "false": False}[cell]
    if isinstance(expected, list):
        return json.loads(cell)
    if isinstance(expected, int | float):
        return type(expected)(cell)
    return unguarded(cell)


@pytest.mark.parametrize("name", TABLES)
def test_csv_comes_back_row_for_row(
    exported: dict[str, Path], hostile: RunFolder, name: str
) -> None:
    expected = as_written(rows_of(hostile, name))
    found = [
        {column: from_cell(cell, row[column]) for column, cell in cells.items()}
        for cells, row in zip(csv_rows(exported["csv"] / f"{name}.csv"), expected, strict=True)
    ]
    assert same(found, expected)


@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb"])
def test_texts_of_labels_survive_other_readers_of_csv(
    exported: dict[str, Path], hostile: RunFolder, reader: str
) -> None:
    file = exported["csv"] / "labels.csv"
    if reader == "pandas":
        import pandas

        texts = pandas.read_csv(file, keep_default_na=False)["text"].tolist()
    elif reader == "polars":
        import polars

        texts = polars.read_csv(file, infer_schema_length=None)
        texts = texts["text"].fill_null("").to_list()
    else:
        with duckdb.connect() as connection:
            rows = connection.sql(
                f"SELECT coalesce(text, '') FROM read_csv('{file}', quote = '\"', escape = '\"', "
                "new_line = '\\n', strict_mode = false, header = true, delim = ',')"
            ).fetchall()
            texts = [text for (text,) in rows]
    expected = [row["text"] for row in rows_of(hostile, "labels")]
    assert [unguarded(text) for text in texts] == expected


def test_a_csv_in_a_spreadsheet_starts_no_formula(exported: dict[str, Path]) -> None:
    begun_with = set()
    for name in TABLES:
        for cells in csv_rows(exported["csv"] / f"{name}.csv"):
            for cell in cells.values():
                begun_with.add(cell[:1])
                if cell[:1] in ("-", "+"):
                    float(cell)  # a number, which a formula never is
    assert begun_with.isdisjoint(set("=@\t\r\n＝＋－＠"))
    assert "'" in begun_with
    texts = [cells["text"] for cells in csv_rows(exported["csv"] / "labels.csv")]
    assert f"'{LABELS[10]}" in texts and f"'{LABELS[11]}" in texts


@pytest.mark.slow
def test_a_data_set_opens_with_load_dataset(
    exported: dict[str, Path], hostile: RunFolder, tmp_path: Path
) -> None:
    import datasets

    for name in TABLES:
        loaded = datasets.load_dataset(str(exported["dataset"]), name, cache_dir=str(tmp_path))
        expected = rows_of(hostile, name)
        if name == "contexts":
            assert list(loaded) == list(SPLITS)
            for split in SPLITS:
                of_split = [row for row in expected if row["split"] == split]
                assert same(list(loaded[split]), of_split)
        else:
            assert list(loaded) == ["train"]
            assert same(list(loaded["train"]), expected)
    default = datasets.load_dataset(str(exported["dataset"]), cache_dir=str(tmp_path))
    assert default["train"].column_names[:4] == ["feature_id", "sae_id", "feature", "label_id"]


@pytest.mark.slow
def test_a_data_set_without_labels_opens_as_well(tmp_path: Path) -> None:
    import datasets

    run = make_hostile_run(tmp_path / "run")
    with duckdb.connect(str(run.database)) as connection:
        for table in ("labels", "scores", "contexts"):
            connection.execute(f"DELETE FROM {table}")
        set_meta(connection, REVISION, "without")
        refresh_current_features(connection, whole=True)
    target = export(run, tmp_path / "out", "dataset")
    loaded = datasets.load_dataset(str(target), cache_dir=str(tmp_path / "cache"))
    assert len(loaded["train"]) == 84
    assert parquet(target, "labels") == parquet(target, "scores") == []
    card = (target / "README.md").read_text()
    assert "cannot be opened with `load_dataset`: `labels`, `contexts`, `scores`." in card
    assert "There are none yet." in card
    assert "No label here has a score." in card
    assert not (target / "scores.png").exists()
