"""The data card: what it says follows from the run, and nothing of the machine is in it."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
from huggingface_hub import DatasetCard
from scopenote.store.card_facts import SPREAD_BINS, read_card_facts
from scopenote.store.current_features import refresh_current_features
from scopenote.store.database import open_store
from scopenote.store.export_choice import ExportChoice, choose
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.run_folder import RunFolder

from .exported_runs import export
from .hostile_run import make_hostile_run
from .made_up_run import RES

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_hostile_run(tmp_path / "run")


def change(run: RunFolder, *statements: str) -> None:
    with duckdb.connect(str(run.database)) as connection:
        for statement in statements:
            connection.execute(statement)
        set_meta(connection, REVISION, "changed")
        refresh_current_features(connection, whole=True)


def card(run: RunFolder, target: Path, **choice: object) -> str:
    return (export(run, target, "dataset", **choice) / "README.md").read_text(encoding="utf-8")


def test_the_header_is_what_the_hub_reads(run: RunFolder, tmp_path: Path) -> None:
    header = DatasetCard(card(run, tmp_path / "out")).data.to_dict()
    assert header["license"] == "unknown"
    assert header["size_categories"] == ["n<1K"]
    assert [each["config_name"] for each in header["configs"]] == [
        "labels", "features", "contexts", "scores",
    ]  # fmt: skip
    assert header["configs"][2]["data_files"][2] == {
        "split": "score",
        "path": "contexts-score.parquet",
    }


def test_by_whom_labels_are_is_counted_with_the_failed(run: RunFolder, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out")
    assert "| auto | token\\_lookup | 1 | – | 76 | 76 | 2 |" in text
    assert "- 2: never active in explain" in text
    assert "- 2: too few active tokens" in text


def test_imported_labels_and_those_who_saw_the_score_split_are_named_as_limits(
    run: RunFolder, tmp_path: Path
) -> None:
    assert "Imported" not in card(run, tmp_path / "before")
    change(
        run,
        f"UPDATE labels SET source = 'imported' WHERE label_id = '{RES}:1'",
        f"UPDATE labels SET saw_score = true WHERE label_id = '{RES}:2'",
    )
    text = card(run, tmp_path / "out")
    assert "Imported labels were written by others" in text
    assert "1 labels are by people who had looked at contexts of `score`" in text


def test_folders_and_endpoints_of_the_machine_are_not_in_an_export(
    run: RunFolder, tmp_path: Path
) -> None:
    config = {
        "corpus": {"path": "/home/somebody/secret/corpus.jsonl"},
        "explain": {"chat": {"base_url": "http://inside.example:8000/v1"}},
    }
    change(run, f"UPDATE runs SET config = '{json.dumps(config)}'")
    folder = export(run, tmp_path / "out", "dataset")
    assert "Text: files: corpus.jsonl." in (folder / "README.md").read_text()
    for file in folder.iterdir():
        content = file.read_bytes()
        assert b"somebody" not in content and b"inside.example" not in content
        assert str(tmp_path).encode() not in content


def test_what_a_label_or_a_reason_says_is_no_markup(run: RunFolder, tmp_path: Path) -> None:
    hostile = "<img src=x> | [a](http://x) `b`"
    change(run, f"UPDATE labels SET explainer = '{hostile}', reason = '{hostile}'")
    text = card(run, tmp_path / "out")
    assert "<img" not in text.replace("\\<", "")
    assert "\\<img src=x\\> \\| \\[a\\](http://x) \\`b\\`" in text


def test_the_spread_counts_each_headline_once(run: RunFolder) -> None:
    with open_store(run.path) as store:
        choose(store.connection, ExportChoice())
        facts = read_card_facts(store.connection)
        values = [
            value
            for (value,) in store.connection.execute(
                "SELECT value FROM scores WHERE metric = 'correlation' AND split = 'score' "
                "AND value IS NOT NULL"
            ).fetchall()
        ]
    (spread,) = facts.spreads
    expected = [0] * SPREAD_BINS
    for value in values:
        expected[min(SPREAD_BINS - 1, int((value + 1) * SPREAD_BINS / 2))] += 1
    assert list(spread.own) == expected
    # The token lookup is its own judge here: beside itself it is no null.
    assert sum(spread.null) == 0


def test_only_the_chosen_sae_is_spoken_of(run: RunFolder, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", saes=(RES,))
    assert f"`{RES}`" in text
    assert "1-mlp-1k" not in text
    assert "| auto | token\\_lookup | 1 | – | 38 | 38 | 1 |" in text


def test_a_filter_is_said(run: RunFolder, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", min_score=0.5)
    assert "Only labels that score at least 0.5, and the features that have them." in text
