"""Neuronpedia's bulk layout: its files and fields, the same bytes again, and the way back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.flows.cli import main
from scopenote.flows.config import demo_config
from scopenote.flows.export_run import ExportRequest, write_export
from scopenote.flows.progress import Progress
from scopenote.label.label_reply import clean_text, shows_nothing
from scopenote.store import export_contexts, export_neuronpedia
from scopenote.store.database import open_store
from scopenote.store.errors import ExitCode
from scopenote.store.export_choice import ExportChoice
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.feature_contexts import read_contexts
from scopenote.store.feature_page import read_feature_page
from scopenote.store.neuronpedia_shape import neuronpedia_feature, type_name
from scopenote.store.packed_lines import LinePacker, packed_lines
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder
from scopenote.store.splits import SPLITS

from .hostile_run import make_hostile_run
from .made_up_run import MLP, NEVER_ACTIVE, RES

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

# As they are documented; the tables that they are loaded into have further ones.
DOCUMENTED = {
    "explanations": {
        "id", "modelId", "layer", "index", "authorId", "description", "typeName",
        "explanationModelName", "embedding",
    },
    "features": {
        "modelId", "layer", "index", "maxActApprox", "frac_nonzero",
        "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
        "logits_hist_data_bar_values", "pos_str", "pos_values", "neg_str", "neg_values",
        "topkCosSimIndices", "topkCosSimValues", "hookName", "vector",
    },
    "activations": {
        "id", "modelId", "layer", "index", "tokens", "values", "maxValue", "maxValueTokenIndex",
        "minValue", "binMin", "binMax", "binContains", "qualifyingTokenIndex",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def exported(hostile: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(hostile, tmp_path_factory.mktemp("exported") / "np")


def export(run: RunFolder, target: Path, **choice: Any) -> Path:
    request = ExportRequest(target=target, format="neuronpedia", choice=ExportChoice(**choice))
    with (
        open_store(run.path) as store,
        open(os.devnull, "w") as nothing,
        Progress(nothing) as progress,
    ):
        write_export(run, store, request, progress)
    return target


def lines(folder: Path, sae_id: str, kind: str) -> list[dict[str, Any]]:
    files = sorted((folder / "v1" / sae_id / kind).glob("batch-*.jsonl.gz"))
    return [
        json.loads(line)
        for file in files
        for line in gzip.decompress(file.read_bytes()).split(b"\n")[:-1]
    ]


@pytest.mark.parametrize("kind", list(DOCUMENTED))
def test_every_documented_field_is_there(exported: Path, kind: str) -> None:
    rows = lines(exported, RES, kind)
    assert rows
    for row in rows:
        assert row.keys() >= DOCUMENTED[kind]
        assert list(row) == list(rows[0])
        assert (row["modelId"], row["layer"]) == tuple(RES.split("/"))
        assert isinstance(row["index"], str)


def test_model_and_source_have_a_line_each(exported: Path) -> None:
    folder = exported / "v1" / RES
    (model,) = (folder / "model.jsonl").read_text().splitlines()
    (source,) = (folder / "source.jsonl").read_text().splitlines()
    assert json.loads(model)["id"] == "toy-gemma-2"
    assert json.loads(source)["id"] == "1-res-1k"
    assert json.loads(source)["setName"] == "res-1k"
    assert "/tmp" not in source


def test_activations_are_those_of_the_feature_pages(hostile: RunFolder, exported: Path) -> None:
    rows = iter(lines(exported, RES, "activations"))
    with open_store(hostile.path) as store:
        for number in range(40):
            feature_id = FeatureId(RES, number)
            ((highest,),) = store.connection.execute(
                "SELECT max_activation FROM features WHERE sae_id = ? AND feature = ?",
                [RES, number],
            ).fetchall()
            for split in SPLITS:
                for kind in ("top", "sample"):
                    for context in read_contexts(
                        store.connection, feature_id, split, kind
                    ).contexts:
                        row, is_top = next(rows), kind == "top"
                        values = list(context.activations)
                        at = values.index(max(values))
                        assert row["id"] == f"{feature_id}/{split}/{kind}/{context.rank}"
                        assert row["index"] == str(number)
                        assert row["tokens"] == list(context.tokens)
                        assert np.array_equal(np.float32(row["values"]), np.float32(values))
                        assert np.float32(row["maxValue"]) == np.float32(max(values))
                        assert (row["minValue"], row["maxValueTokenIndex"]) == (min(values), at)
                        assert (row["dataIndex"], row["dataSource"]) == (context.doc_id, split)
                        bins = (row["binMin"], row["binContains"], row["qualifyingTokenIndex"])
                        assert bins == ((-1, -1, at) if is_top else (None, None, None))
                        if is_top:
                            assert np.float32(row["binMax"]) == np.float32(highest)
    assert next(rows, None) is None


def test_ids_are_of_one_activation_only(exported: Path) -> None:
    ids = [row["id"] for sae in (RES, MLP) for row in lines(exported, sae, "activations")]
    assert len(set(ids)) == len(ids)


def test_features_are_as_the_api_gives_them(hostile: RunFolder, exported: Path) -> None:
    rows = lines(exported, RES, "features")
    assert [row["index"] for row in rows] == [str(n) for n in range(40)]
    with open_store(hostile.path) as store:
        for row in rows:
            page = read_feature_page(store.connection, FeatureId(RES, int(row["index"])))
            shaped = neuronpedia_feature(page, {})
            assert {name: row[name] for name in shaped.keys() & row.keys()} == {
                name: shaped[name] for name in shaped.keys() & row.keys()
            }
            assert row["hookName"] == "blocks.1.hook_resid_post"
    assert rows[NEVER_ACTIVE]["maxActApprox"] == 0.0


def test_a_feature_that_is_never_active_has_no_activations(exported: Path) -> None:
    indices = {row["index"] for row in lines(exported, RES, "activations")}
    assert str(NEVER_ACTIVE) not in indices


def test_batches_have_the_features_that_their_number_says(
    hostile: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    monkeypatch.setattr(export_neuronpedia, "BATCH", 16)
    monkeypatch.setattr(export_contexts, "BLOCK_ROWS", 30)
    target = export(hostile, tmp_path / "np")
    for kind in DOCUMENTED:
        for file in (target / "v1" / RES / kind).iterdir():
            batch = int(file.name.removeprefix("batch-").removesuffix(".jsonl.gz"))
            rows = map(json.loads, gzip.decompress(file.read_bytes()).splitlines())
            assert {int(row["index"]) // 16 for row in rows} == {batch}
        files = sorted(file.name for file in (target / "v1" / RES / kind).iterdir())
        assert files == [f"batch-{n}.jsonl.gz" for n in range(3)]
        assert lines(target, RES, kind) == lines(exported, RES, kind)


def test_the_same_state_gives_the_same_bytes(
    hostile: RunFolder, tmp_path: Path, exported: Path
) -> None:
    again = export(hostile, tmp_path / "np")
    files = [file.relative_to(exported) for file in exported.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert sorted(files) == sorted(f.relative_to(again) for f in again.rglob("*") if f.is_file())
    for file in files:
        assert (again / file).read_bytes() == (exported / file).read_bytes()


def test_packed_files_name_neither_time_nor_file(exported: Path) -> None:
    for file in exported.rglob("*.gz"):
        flags, time = file.read_bytes()[3], file.read_bytes()[4:8]
        assert (flags, time) == (0, b"\0\0\0\0")


def test_the_manifest_counts_lines_and_bytes(exported: Path) -> None:
    listed = json.loads((exported / "manifest.json").read_text())["files"]
    packed = [each for each in listed if each["file"].endswith(".gz")]
    assert {each["holds"] for each in packed} == set(DOCUMENTED)
    for each in packed:
        content = (exported / each["file"]).read_bytes()
        assert each["sha256"] == hashlib.sha256(content).hexdigest()
        assert each["rows"] == gzip.decompress(content).count(b"\n")


def test_a_filter_leaves_out_what_is_not_chosen(hostile: RunFolder, tmp_path: Path) -> None:
    target = export(hostile, tmp_path / "np", saes=(RES,), min_score=0.5)
    assert not (target / "v1" / MLP).exists()
    labelled = {row["index"] for row in lines(target, RES, "explanations")}
    assert 0 < len(labelled) < 40
    assert {row["index"] for row in lines(target, RES, "features")} == labelled
    assert {row["index"] for row in lines(target, RES, "activations")} == labelled


WRITTEN = (
    "SELECT sae_id, feature, text, explanation, model, coalesce(author, 'scopenote') "
    "FROM labels WHERE status = 'done' AND text IS NOT NULL ORDER BY ALL"
)


def test_labels_come_out_as_they_are(hostile: RunFolder, exported: Path) -> None:
    with open_store(hostile.path) as store:
        rows = store.connection.execute(WRITTEN).fetchall()
    found = [
        (sae, int(row["index"]), row["description"], row["notes"], row["explanationModelName"],
         row["authorId"])
        for sae in (MLP, RES) for row in lines(exported, sae, "explanations")
    ]  # fmt: skip
    # The author of a made-up label is its text, which may be empty.
    named = [(*row[:5], row[5] or "scopenote") for row in rows]
    assert sorted(found, key=str) == sorted(named, key=str)


def test_imported_into_a_run_without_labels_they_are_the_same(
    hostile: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(str(hostile.database), read_only=True) as before:
        shown = [
            tuple(each if each is None or isinstance(each, int) else clean_text(each)
                  for each in row)
            for row in before.execute(WRITTEN).fetchall()
        ]  # fmt: skip
    labels = [row for row in shown if not shows_nothing(row[2])]
    assert len(labels) > 70
    fresh = RunFolder(tmp_path / "fresh").create()
    fresh.write_config(demo_config().to_toml())
    shutil.copy(hostile.database, fresh.work_database)
    with duckdb.connect(str(fresh.work_database)) as work:
        work.execute("DELETE FROM labels; DELETE FROM scores; DELETE FROM current_features")
        set_meta(work, REVISION, "without labels")
    shutil.copy(fresh.work_database, fresh.database)
    exported = export(hostile, tmp_path / "np", all_labels=True)
    monkeypatch.setattr("sys.argv", ["scopenote", "import-labels", str(fresh.path), str(exported)])
    with pytest.raises(SystemExit) as ending:
        main()
    # Two of the made-up labels show nothing, which no label of a run does.
    assert ending.value.code == ExitCode.FINISHED_WITH_FAILURES
    with open_store(fresh.path) as after:
        assert after.connection.execute(WRITTEN).fetchall() == sorted(labels, key=_as_duckdb)


def _as_duckdb(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:2], row[2].encode(), *(each or "" for each in row[3:]))


def test_a_label_goes_by_how_it_was_written() -> None:
    assert type_name("auto", "max_activations") == "max_activations"
    assert type_name("human", "human") is None
    assert type_name("imported", "neuronpedia/oai_token-act-pair") == "oai_token-act-pair"
    assert type_name("imported", "their lab") == "their lab"


# Packing.


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=300))))
def test_packed_lines_are_what_was_given(
    tmp_path_factory: pytest.TempPathFactory, given_lines: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    in_order = sorted(given_lines, key=lambda each: each[0])
    with packed_lines() as packer:
        for name, content in in_order:
            packer.append(folder / name, content)
    for name in {name for name, _ in in_order}:
        expected = b"".join(content for each, content in in_order if each == name)
        assert gzip.decompress((folder / name).read_bytes()) == expected


def test_a_disk_that_refuses_is_heard_of(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), packed_lines() as packer:
        for _ in range(9):
            packer.append(tmp_path / "nowhere" / "a", b"x")


def test_an_error_in_the_block_is_not_hidden_and_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), packed_lines() as packer:
        packer.append(tmp_path / "a", b"x")
        raise ValueError("ours")
    with ThreadPoolExecutor(1) as executor:
        assert LinePacker(executor).finish() is None
