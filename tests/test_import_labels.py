"""`scopenote import-labels`: what comes into the tables, what is said, and what changes nothing."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scopenote.flows.cli import main
from scopenote.flows.config import demo_config
from scopenote.flows.replay import replay_label
from scopenote.store.database import open_store
from scopenote.store.errors import UserMistake
from scopenote.store.feature_labels import read_feature_labels
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder

from .made_up_run import MLP, NEVER_ACTIVE, RES, make_database

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

IMPORTED = """
    SELECT sae_id, feature, text, explanation, explainer, model, author FROM labels
    WHERE source = 'imported' ORDER BY ALL
"""


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("made-up") / "scopenote.duckdb"
    make_database(file).close()
    return file


@pytest.fixture
def folder(tmp_path: Path, made_up: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config(demo_config().to_toml())
    shutil.copy(made_up, folder.database)
    shutil.copy(made_up, folder.work_database)
    return folder


@pytest.fixture
def bring_in(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on the folder; its exit status and both outputs."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object, command: str = "import-labels") -> tuple[int, str, str]:
        arguments = ["scopenote", command, str(folder.path), *map(str, words)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return run


def ask(folder: RunFolder, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder.database), read_only=True) as connection:
        return connection.execute(query).fetchall()


def explanation(sae_id: str, index: object, text: str | None, **more: Any) -> dict[str, Any]:
    model, layer = sae_id.split("/")
    row = {"modelId": model, "layer": layer, "index": index, "description": text}
    return {**row, "authorId": "clk", "typeName": "oai", "explanationModelName": "gpt", **more}


def write_batches(folder: Path, *batches: list[dict[str, Any]]) -> Path:
    target = folder / "np" / "v1" / "toy-gemma-2" / "1-res-1k" / "explanations"
    target.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(batches):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (target / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(content))
    return folder / "np"


def test_neuronpedias_layout_comes_into_the_tables(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    batches = write_batches(
        tmp_path,
        [explanation(RES, "3", "a word", notes="so"), explanation(RES, "3", "another word")],
        [explanation(MLP, "0", "brackets", typeName=None)],
    )
    status, out, _ = bring_in(batches)
    assert status == 0
    assert "3 labels brought in  3 rows of 2 files" in out
    assert "may have been text that they are scored on" in " ".join(out.split())
    assert ask(folder, IMPORTED) == [
        (MLP, 0, "brackets", None, "neuronpedia", "gpt", "clk"),
        (RES, 3, "a word", "so", "neuronpedia/oai", "gpt", "clk"),
        (RES, 3, "another word", None, "neuronpedia/oai", "gpt", "clk"),
    ]
    ((n,),) = ask(
        folder,
        "SELECT count(*) FROM labels JOIN runs USING (run_id) WHERE source = 'imported' "
        "AND command = 'import-labels' AND labels.status = 'done' AND saw_score IS NULL "
        "AND created_at BETWEEN started_at AND finished_at",
    )
    assert n == 3


def test_the_same_file_again_adds_nothing_and_says_so(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    batches = write_batches(tmp_path, [explanation(RES, "3", "a word")])
    assert bring_in(batches)[0] == 0
    before = ask(folder, "FROM labels ORDER BY ALL")
    status, out, _ = bring_in(batches)
    assert status == 0
    assert "all of these labels were there already" in out
    assert ask(folder, "FROM labels ORDER BY ALL") == before


def test_one_new_row_among_known_ones_is_added_alone(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    rows = [explanation(RES, "3", "a word")]
    bring_in(write_batches(tmp_path, rows))
    status, out, _ = bring_in(
        write_batches(tmp_path, [*rows, explanation(RES, "4", "a word")]), "--json"
    )
    report = json.loads(out)
    assert (status, report["n_new"], report["n_there"]) == (0, 1, 1)
    assert len(ask(folder, IMPORTED)) == 2


def test_rows_that_say_the_same_are_one_label(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    rows = [explanation(RES, "3", text, notes=notes) for text, notes in
            (("a word", "first"), (" a\tword", "second"), ("a word", None))]  # fmt: skip
    _, out, _ = bring_in(write_batches(tmp_path, rows), "--json")
    assert [json.loads(out)[name] for name in ("n_rows", "n_new", "n_repeated")] == [3, 1, 2]
    assert [row[2:4] for row in ask(folder, IMPORTED)] == [("a word", "first")]


def test_rows_that_do_not_fit_are_named_and_the_rest_comes_in(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    other = "toy-gemma-2/9-res-1k"
    rows = [
        explanation(RES, "3", "a word"),
        *(explanation(other, n, "a word") for n in range(5)),
        explanation(RES, "4", ""),
        explanation("gemma-2-2b/1-res-1k", "4", "a word"),
    ]
    status, out, _ = bring_in(write_batches(tmp_path, rows))
    assert status == 3
    assert "7 rows left out" in out
    assert "5 because it is of an SAE that the run does not have" in out
    assert f"{other}/0 (v1/toy-gemma-2/1-res-1k/explanations/batch-0.jsonl.gz, line 2)" in out
    assert f"{other}/3" not in out
    assert "1 because it has no text" in out
    assert "1 because it is of another model" in out
    assert len(ask(folder, IMPORTED)) == 1
    shown = bring_in(command="runs")[1]
    assert "left out because it has no text" in " ".join(shown.split())
    assert "alert" not in shown


def test_where_no_row_fits_nothing_changes(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    before = folder.database.read_bytes(), folder.work_database.read_bytes()
    rows = [explanation("gemma-2-2b/20-gemmascope-res-16k", "8249", "doubt")] * 3
    status, _, err = bring_in(write_batches(tmp_path, rows))
    assert status == 2
    assert "None of the 3 rows is a label of a feature of this run." in err
    assert "gemma-2-2b/20-gemmascope-res-16k/8249" in err
    assert RES in err
    assert (folder.database.read_bytes(), folder.work_database.read_bytes()) == before
    assert list(folder.parts.iterdir()) == []


def test_a_truncated_batch_brings_nothing_in_of_the_others_either(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    rows = [explanation(RES, n, f"word {n}") for n in range(40)]
    batches = write_batches(tmp_path, rows, rows)
    last = next(batches.rglob("batch-1.jsonl.gz"))
    last.write_bytes(last.read_bytes()[:-20])
    before = folder.work_database.read_bytes()
    status, _, err = bring_in(batches)
    assert status == 2
    assert "The file is cut off." in err
    assert str(last) in err
    assert folder.work_database.read_bytes() == before
    assert list(folder.parts.iterdir()) == []


def test_tables_go_by_the_name_of_their_file_or_the_one_given(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(f"feature,text,author\n{RES}/3,a word,ann\n")
    table = pa.table({"feature": [4], "sae_id": [RES], "text": ["a word"]})
    pq.write_table(table, tmp_path / "theirs.parquet")
    assert bring_in(tmp_path / "mine.csv")[0] == 0
    assert bring_in(tmp_path / "theirs.parquet", "--from", "the others")[0] == 0
    assert [row[4:] for row in ask(folder, IMPORTED)] == [
        ("mine", None, "ann"),
        ("the others", None, "the others"),
    ]


@pytest.mark.parametrize(
    "name", ["highlighted", "token_lookup", "human", "a/b", "\u200b", "x" * 101]
)
def test_others_cannot_go_by_our_names(
    folder: RunFolder, bring_in: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine.csv").write_text(f"feature,text\n{RES}/3,a word\n")
    status, _, err = bring_in(tmp_path / "mine.csv", "--from", name)
    assert status == 2
    assert "cannot go by this name" in err


def test_an_empty_file_is_refused(bring_in: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("feature,text\n")
    status, _, err = bring_in(tmp_path / "mine.csv")
    assert status == 2
    assert "There are no rows to bring in." in err


def test_a_run_that_is_at_work_is_left_alone(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(f"feature,text\n{RES}/3,a word\n")
    with folder.lock("scopenote run"):
        status, _, err = bring_in(tmp_path / "mine.csv")
    assert status == 1
    assert "Another process is working on this run." in err


def test_it_loads_no_prefect(folder: RunFolder, bring_in: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(f"feature,text\n{RES}/3,a word\n")
    code = (
        "import sys\n"
        "from scopenote.flows.cli import app\n"
        f"app(['import-labels', {str(folder.path)!r}, {str(tmp_path / 'mine.csv')!r}], "
        "standalone_mode=False)\n"
        "print([name for name in ('prefect', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_pages_say_whose_label_it_is_and_what_is_not_known(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    feature = f"{RES}/{NEVER_ACTIVE}"
    (tmp_path / "mine.csv").write_text(f"feature,text,author\n{feature},a word,ann\n")
    bring_in(tmp_path / "mine.csv", "--from", "their lab")
    _, out, _ = bring_in(feature, command="show")
    assert "imported, their lab, ann" in out
    assert "text that is not known" in out
    with open_store(folder.path) as store:
        label = read_feature_labels(store.connection, FeatureId(RES, NEVER_ACTIVE)).in_force
        assert label is not None
        with pytest.raises(UserMistake, match="cannot be derived again"):
            replay_label(store, label.label_id)


def test_the_overview_and_lists_know_imported_labels(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(f"feature,text\n{RES}/{NEVER_ACTIVE},a word\n")
    bring_in(tmp_path / "mine.csv")
    rows = ask(folder, "SELECT feature, explainer FROM current_features WHERE source = 'imported'")
    assert rows == [(NEVER_ACTIVE, "mine")]


@pytest.mark.parametrize("name", ["a", "z"])
def test_a_label_that_nobody_has_compared_is_in_force_by_its_kind(
    folder: RunFolder, bring_in: Any, tmp_path: Path, name: str
) -> None:
    with duckdb.connect(str(folder.work_database)) as work:
        work.execute(
            f"""
            DELETE FROM scores WHERE split = 'select' AND label_id IN ('{RES}:3', '{RES}:4');
            INSERT INTO labels BY NAME
            SELECT * REPLACE ('ours' AS label_id, 'with_logits' AS explainer)
            FROM labels WHERE label_id = '{RES}:4';
            """
        )
    rows = "".join(f"{RES}/{n},a word\n" for n in (3, 4, 9))
    (tmp_path / "mine.csv").write_text(f"feature,text\n{rows}")
    assert bring_in(tmp_path / "mine.csv", "--from", name)[0] == 0
    in_force = dict(
        ask(
            folder,
            "SELECT feature, explainer FROM current_features "
            f"WHERE sae_id = '{RES}' AND feature IN (3, 4, 9)",
        )
    )
    # Of the last, the token lookup's label was compared.
    assert in_force == {3: "token_lookup", 4: "with_logits", 9: "token_lookup"}


def test_a_label_written_meanwhile_is_kept(
    folder: RunFolder, bring_in: Any, tmp_path: Path
) -> None:
    assert bring_in(f"{RES}/3", "by hand", "--by", "ann", command="label")[0] == 0
    (tmp_path / "mine.csv").write_text(f"feature,text\n{RES}/3,a word\n")
    assert bring_in(tmp_path / "mine.csv")[0] == 0
    assert list(folder.inbox.iterdir()) == []
    query = f"SELECT text FROM current_labels WHERE sae_id = '{RES}' AND feature = 3"
    assert ask(folder, query) == [("by hand",)]
