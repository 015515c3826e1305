"""Exports: what is in them, that readers get back what was there, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.flows.cli import main
from scopenote.flows.export_run import ExportRequest, write_export
from scopenote.flows.progress import Progress
from scopenote.store.byte_pieces import join_bytes
from scopenote.store.current_features import refresh_current_features
from scopenote.store.database import open_store
from scopenote.store.errors import UserMistake
from scopenote.store.export_choice import TABLES, ExportChoice, choose
from scopenote.store.export_folder import MANIFEST, written_export
from scopenote.store.export_tables import read_table
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.feature_contexts import read_contexts
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder
from scopenote.store.splits import SPLITS
from scopenote.store.unit_names import unit_name

from .hostile_run import LABELS, NEURONS, make_hostile_run
from .made_up_run import MLP, RES

Rows = list[dict[str, Any]]


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


def export(run: RunFolder, target: Path, kind: str = "parquet", **choice: Any) -> Path:
    request = ExportRequest(target=target, format=kind, choice=ExportChoice(**choice))
    with open_store(run.path) as store, Progress(open(os.devnull, "w")) as progress:
        write_export(run, store, request, progress)
    return target


def rows_of(run: RunFolder, name: str, **choice: Any) -> Rows:
    """A table of an export as Python has it, straight from the database."""
    with open_store(run.path) as store:
        choose(store.connection, ExportChoice(**choice))
        return [
            row for batch in read_table(store.connection, name).batches for row in batch.to_pylist()
        ]


def parquet(folder: Path, name: str) -> Rows:
    import pyarrow.parquet as pq

    return pq.read_table(folder / f"{name}.parquet").to_pylist()


# What is in it.


def test_contexts_are_those_of_the_feature_pages_token_by_token(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "contexts")
    with open_store(hostile.path) as store:
        found = []
        for sae_id in (MLP, RES):
            for feature in range(40):
                for split in SPLITS:
                    for kind in ("top", "sample"):
                        feature_id = FeatureId(sae_id, feature)
                        kept = read_contexts(store.connection, feature_id, split, kind)
                        found += [(feature_id, context) for context in kept.contexts]
    assert len(rows) == len(found) == 2 * 39 * 12 + 4
    for row, (feature_id, context) in zip(rows, found, strict=True):
        assert row["feature_id"] == str(feature_id)
        assert (row["split"], row["kind"], row["rank"]) == (
            context.split,
            context.kind,
            context.rank,
        )
        assert int(row["window_id"], 16) == context.window_id
        assert row["tokens"] == list(context.tokens)
        assert row["activations"] == list(context.activations)
        assert row["prefix"] == "".join(join_bytes(context.prefix, [0.0] * len(context.prefix))[0])
        assert row["weight"] == context.weight


def test_text_has_characters_whole_that_tokens_have_in_bytes(hostile: RunFolder) -> None:
    (row,) = [
        r for r in rows_of(hostile, "contexts") if r["split"] == "score" and r["feature"] == 0
    ]
    assert row["tokens"][:6] == ["<0xE2>", "<0x96>", "<0x81>", "<0xC3>", "<0xA9>", "<0xF0>"]
    assert row["text"].startswith("▁é\ufffd▁\r\n\r\x00")
    assert row["text"].endswith("<unk><2000>")
    assert row["tokens"][-1] == "<2000>"
    assert len(row["tokens"]) == len(row["token_ids"]) == len(row["activations"])


def test_neurons_are_called_by_neuron_and_sign(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "features", saes=(NEURONS,))
    assert [row["feature_id"] for row in rows] == [
        f"{NEURONS}/{unit_name(NEURONS, feature)}" for feature in range(4)
    ]
    assert rows[3]["feature_id"] == f"{NEURONS}/1-"


def test_labels_in_force_are_those_of_the_view_with_their_figures(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "labels")
    with open_store(hostile.path) as store:
        names = ["label_id", "text", "score", "score_reason", "ci_low", "null_value", "simulator"]
        expected = store.connection.execute(
            f"SELECT {', '.join(names)} FROM current_labels ORDER BY sae_id, feature"
        ).fetchall()
    assert [tuple(row[name] for name in names) for row in rows] == expected
    assert all(row["in_force"] for row in rows)


def test_all_labels_have_the_failed_ones_with_their_reasons(hostile: RunFolder) -> None:
    rows = rows_of(hostile, "labels", all_labels=True)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["reason"] for row in failed] == ["never active in explain"] * 2
    assert not any(row["in_force"] for row in failed)
    in_force = [row for row in rows if row["in_force"]]
    assert in_force == rows_of(hostile, "labels")


def test_a_least_score_leaves_out_labels_and_what_belongs_to_them(hostile: RunFolder) -> None:
    labels = rows_of(hostile, "labels", min_score=0.5)
    assert 0 < len(labels) < len(rows_of(hostile, "labels"))
    assert min(row["score"] for row in labels) >= 0.5
    ids = {row["feature_id"] for row in labels}
    assert {row["feature_id"] for row in rows_of(hostile, "features", min_score=0.5)} == ids
    assert {row["feature_id"] for row in rows_of(hostile, "contexts", min_score=0.5)} == ids
    scores = rows_of(hostile, "scores", min_score=0.5)
    assert {row["label_id"] for row in scores} == {row["label_id"] for row in labels}


def test_one_sae_alone(hostile: RunFolder) -> None:
    for name in TABLES:
        assert {row["sae_id"] for row in rows_of(hostile, name, saes=(RES,))} == {RES}


# Round trips.


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


# The folder.


@pytest.mark.parametrize("kind", ["dataset", "parquet", "jsonl", "csv"])
def test_the_same_state_gives_the_same_bytes(
    exported: dict[str, Path], hostile: RunFolder, tmp_path: Path, kind: str
) -> None:
    again = export(hostile, tmp_path / "again", kind)
    first = {file.name: file.read_bytes() for file in exported[kind].iterdir()}
    assert {file.name: file.read_bytes() for file in again.iterdir()} == first
    assert MANIFEST in first


@pytest.mark.parametrize("kind", ["dataset", "parquet", "jsonl", "csv"])
def test_the_manifest_lists_every_file_with_rows_hash_and_query(
    exported: dict[str, Path], kind: str
) -> None:
    folder = exported[kind]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {each["file"] for each in manifest["files"]} | {MANIFEST} == {
        file.name for file in folder.iterdir()
    }
    for each in manifest["files"]:
        content = (folder / each["file"]).read_bytes()
        assert each["sha256"] == hashlib.sha256(content).hexdigest()
        assert each["bytes"] == len(content)
        if each["holds"]:
            assert each["rows"] > 0
            assert each["query"].startswith(("SELECT ", "WITH "))
    assert manifest["choice"] == {
        "saes": [], "source": None, "min_score": None, "labels": "in force",
    }  # fmt: skip
    assert manifest["database"]["revision"] == "hostile"


def test_a_query_of_the_manifest_gives_the_rows_again(
    exported: dict[str, Path], hostile: RunFolder
) -> None:
    manifest = json.loads((exported["parquet"] / MANIFEST).read_text())
    queries = {each["holds"]: each["query"] for each in manifest["files"]}
    with open_store(hostile.path) as store:
        choose(store.connection, ExportChoice())
        rows = store.connection.sql(queries["labels"]).to_arrow_table().to_pylist()
    assert rows == parquet(exported["parquet"], "labels")


def test_nothing_is_left_beside_an_export_that_failed(hostile: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_export(tmp_path / "out") as folder:
        folder.add_text("a.txt", "half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_stays_as_it_was_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_text(target, "a.txt", "first")
    with pytest.raises(ZeroDivisionError), written_export(target, overwrite=True) as folder:
        folder.add_text("a.txt", "second")
        raise ZeroDivisionError
    assert (target / "a.txt").read_text() == "first"


def write_text(target: Path, name: str, content: str, overwrite: bool = False) -> None:
    with written_export(target, overwrite) as folder:
        folder.add_text(name, content)
        folder.write_manifest({})


def test_what_a_killed_export_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished-4194999"  # no process has so high a number
    left.mkdir()
    (left / "a.txt").write_text("half")
    busy = tmp_path / f".out.unfinished-{os.getppid()}"
    busy.mkdir()
    write_text(tmp_path / "out", "a.txt", "whole")
    assert not left.exists()
    assert busy.exists()


def test_a_folder_with_something_in_it_is_refused_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserMistake, match="not empty") as refusal:
        write_text(target, "a.txt", "new")
    assert "--overwrite" in str(refusal.value)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    write_text(target, "a.txt", "new", overwrite=True)
    # What no export wrote is somebody's.
    assert (target / "mine.txt").read_text() == "mine"
    assert (target / "a.txt").read_text() == "new"


def test_what_an_earlier_export_wrote_goes_and_what_it_did_not_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with written_export(target) as folder:
        folder.add_text("old/a.txt", "old")
        folder.add_text("b.txt", "old")
        folder.write_manifest({})
    for mine in (".git/HEAD", "old/mine.txt"):
        (target / mine).parent.mkdir(exist_ok=True)
        (target / mine).write_text("mine")
    write_text(target, "b.txt", "new", overwrite=True)
    there = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert there == {".git/HEAD", "old/mine.txt", "b.txt", MANIFEST}
    assert (target / "b.txt").read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_text(tmp_path / "out", "a.txt", "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


# The command.


@pytest.fixture
def command(
    hostile: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str | Path) -> tuple[int, str, str]:
        argv = ["scopenote", "export", str(hostile.path), *map(str, words)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        return ending.value.code, output.out, output.err

    return run


def test_the_command_says_what_it_wrote(command: Callable, tmp_path: Path) -> None:
    status, out, _ = command("--to", tmp_path / "out", "--format", "jsonl", "--min-score", "0.5")
    assert status == 0
    assert "labels.jsonl" in out and "contexts.jsonl" in out
    status, out, _ = command("--to", tmp_path / "out2", "--format", "csv", "--json")
    found = json.loads(out)
    assert found["rows"]["features"] == 84
    assert {each["file"] for each in found["files"]} == {f"{name}.csv" for name in TABLES}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sae", "toy-gemma-2/9-res-1k"), "The run has no such SAE"),
        (("--source", "human"), "no such label"),
        (("--min-score", "1.5"), "no such label"),
        (("--format", "csv", "--push-to-hub", "me/labels"), "Only a data set is uploaded"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    command: Callable, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    status, _, err = command("--to", tmp_path / "out", *words)
    assert status == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_lands_in_a_run(command: Callable, hostile: RunFolder) -> None:
    status, _, err = command("--to", hostile.path, "--overwrite")
    assert status == 2
    assert "over a run" in err
    assert hostile.database.is_file()


def test_a_file_in_the_way_is_named(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    status, _, err = command("--to", tmp_path / "out", "--overwrite")
    assert status == 2
    assert str(tmp_path / "out") in err
    assert (tmp_path / "out").read_text() == "mine"


def test_uploading_without_a_token_is_refused_before_anything_is_written(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    status, _, err = command("--to", tmp_path / "out", "--push-to-hub", "me/labels")
    assert status == 2
    assert "HF_TOKEN" in err
    assert not (tmp_path / "out").exists()
