"""What the README says is so: its commands, its configuration, its code, its query, its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.extract.gemma_scope_index import check_published, resolve_short_name
from scopenote.extract.sae_sources import locate_sae
from scopenote.flows import cli
from scopenote.flows.config import load_config
from scopenote.store.errors import ConfigurationError
from scopenote.store.run_folder import RunFolder
from scopenote.store.schema import MIGRATIONS

from .exported_runs import export
from .hostile_run import make_hostile_run
from .made_up_run import make_database
from .toy_runs import make_toy_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("store", "extract", "label", "evaluate", "flows")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title}"
    return found[1]


# --- commands ---------------------------------------------------------------------------------


def commands_of_the_program() -> set[str]:
    named = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    return {name.replace("_", "-") for name in named}


def test_the_table_of_commands_lists_every_command_and_no_other() -> None:
    listed = re.findall(r"^\| `scopenote ([a-z-]+)", section("Commands"), re.MULTILINE)
    assert sorted(listed) == sorted(commands_of_the_program())


def test_every_command_shown_anywhere_exists() -> None:
    shown = set(re.findall(r"^(?:\S*/)?scopenote ([a-z-]+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert shown
    assert shown <= commands_of_the_program()


def test_every_exit_status_is_explained() -> None:
    listed = re.findall(r"^\| (\d) \|", section("Commands"), re.MULTILINE)
    assert [int(code) for code in listed] == [int(code) for code in cli.ExitCode]


def test_every_make_target_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    fenced = "\n".join(blocks("sh"))
    shown = set(re.findall(r"\bmake (?:[A-Z_]+=\S* )*([a-z-]+)\b", fenced))
    shown |= set(re.findall(r"`make (?:[A-Z_]+=\S* )*([a-z-]+)", README))
    assert {"demo", "test", "bench"} <= shown
    assert shown <= targets


# --- configuration ----------------------------------------------------------------------------


def test_the_configuration_loads(tmp_path: Path) -> None:
    block, asking, local, again, judged, *_ = blocks("toml")
    (on_dask,) = [each for each in blocks("toml") if each.startswith("[runner]")]
    file = tmp_path / "gemma.toml"
    file.write_text(block)
    assert load_config(file).explain.prompted == ()
    file.write_text(block + asking.partition("[explain.chat]")[0] + local)
    assert load_config(file).explain.chat.local
    file.write_text(block + on_dask)
    assert load_config(file).runner.kind == "dask"
    file.write_text(block + again + judged)
    assert load_config(file).budget.usd == 1
    assert load_config(file).explain.again.below == 0.3
    assert load_config(file).score.simulator_names == ("token_lookup", "chat/gpt-4o-mini")
    file.write_text(block + asking)
    config = load_config(file)
    assert config.explain.prompted
    assert not config.explain.chat.local
    assert config.model.name == "google/gemma-2-2b"
    assert config.corpus.path == str(tmp_path / "texts")
    *saes, neurons = config.saes.paths
    assert locate_sae(neurons.path, "gemma-2-2b").sae_id == "gemma-2-2b/20-mlp-neurons"
    for entry in saes:
        path = resolve_short_name(entry.path) or entry.path
        owner, name, inside = path.split("/", 2)
        check_published(f"{owner}/{name}", inside)


def test_the_answer_to_a_wrong_key_is_the_one_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, *_ = blocks("toml")
    monkeypatch.chdir(tmp_path)
    Path("gemma.toml").write_text(block.replace("max_tokens", "max_token"))
    with pytest.raises(ConfigurationError) as caught:
        load_config("gemma.toml")
    (shown,) = [text for text in blocks("text") if text.startswith("Error:")]
    assert f"Error: {caught.value}" == shown.rstrip("\n")


# --- Python -----------------------------------------------------------------------------------


def test_the_python_runs_on_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    make_database(tmp_path / "demo" / "scopenote.duckdb").close()
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if "scopenote.open" in block]
    exec(compile(block, "README.md", "exec"), {})
    assert "explain top 12" in capsys.readouterr().out


def test_the_python_steers_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_toy_run(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if "LoadedRun, steer" in block]
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    assert [text.strength for text in found["found"].steered] == [10, 20]
    assert "raise" in found["found"].steered[0].text
    assert capsys.readouterr().out.count("None") == 1


@pytest.mark.slow
def test_the_python_inspects_a_text(
    collected: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "demo").symlink_to(collected)
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if "inspect_text" in block]
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("LensToken") == 3


@pytest.mark.slow
def test_the_python_opens_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_hostile_run(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    export(run, Path("demo-labels"), "dataset")
    (block,) = [block for block in blocks("python") if "load_dataset" in block]
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    assert len(found["labels"]) == 76
    assert len(found["contexts"]) == 936


# --- the query that anyone can run ------------------------------------------------------------

Window = tuple[str, str, tuple[int, ...]]  # split, document, token ids


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    yield connection
    connection.close()


def ask(database: duckdb.DuckDBPyConnection, windows: list[Window]) -> tuple[int, int, int]:
    (query,) = blocks("sql")
    database.execute("DELETE FROM windows")
    for number, (split, document, token_ids) in enumerate(windows):
        database.execute(
            "INSERT INTO windows (window_id, split, doc_id, token_ids) VALUES (?, ?, ?, ?)",
            [number, split, document, list(token_ids)],
        )
    return database.execute(query).fetchall()[0]


def test_the_query_finds_nothing_where_the_splits_are_kept(
    database: duckdb.DuckDBPyConnection,
) -> None:
    kept: list[Window] = [
        ("explain", "a", (1, 2, 3)),
        ("explain", "a", (4, 5)),
        ("select", "b", (6,)),
        ("score", "c", (1, 2)),
        ("score", "c", (2, 3)),
    ]
    assert ask(database, kept) == (2, 0, 0)


def test_the_query_finds_a_shared_document(database: duckdb.DuckDBPyConnection) -> None:
    shared: list[Window] = [("explain", "a", (1,)), ("score", "a", (2,)), ("score", "b", (3,))]
    assert ask(database, shared) == (2, 1, 0)


def test_the_query_finds_shared_token_ids(database: duckdb.DuckDBPyConnection) -> None:
    shared: list[Window] = [("explain", "a", (1, 2)), ("score", "b", (1, 2)), ("score", "b", (1,))]
    assert ask(database, shared) == (2, 0, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["explain", "select", "score"]),
            st.sampled_from("abcd"),
            st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple),
        ),
        max_size=8,
    )
)
def test_the_query_counts_as_plain_loops_do(
    database: duckdb.DuckDBPyConnection, windows: list[Window]
) -> None:
    explain = [window for window in windows if window[0] == "explain"]
    score = [window for window in windows if window[0] == "score"]
    expected = (
        len(score),
        sum(any(window[1] == other[1] for other in explain) for window in score),
        sum(any(window[2] == other[2] for other in explain) for window in score),
    )
    assert ask(database, windows) == expected


# --- files ------------------------------------------------------------------------------------


def paths_in_the_tree() -> set[str]:
    tree = blocks("text")[-1]
    found, above = set(), [""] * 8
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above[depth] = name if name.endswith("/") else ""
        found.add("".join(above[:depth]) + name)
    return found


def test_the_tree_lists_every_file_of_the_rooms() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert not files - paths_in_the_tree(), "the README's tree lacks these"


def test_every_path_in_the_tree_exists() -> None:
    assert not [path for path in paths_in_the_tree() if not (ROOT / path).exists()]


def test_links_to_files_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_table_of_a_run_folder_names_what_a_run_has(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config("")
    with folder.lock("test"):
        made = {path.name for path in folder.path.iterdir() if not path.name.startswith(".")}
    named = {name.strip("`/") for name in re.findall(r"`[\w.]+/?`", section("How it works"))}
    assert made <= named


def test_the_bench_block_can_be_filled() -> None:
    assert README.count("<!-- bench -->") == README.count("<!-- /bench -->") == 1


# --- formulas ---------------------------------------------------------------------------------


def test_the_headline_is_the_formula() -> None:
    from scopenote.evaluate.correlation import correlation

    draw = np.random.default_rng(0)
    p, t = draw.random((2, 30, 8)).astype(np.float32)
    w = draw.integers(1, 9, 30).astype(np.float64)
    tokens = np.repeat(w, 8)
    p_flat, t_flat = p.ravel().astype(np.float64), t.ravel().astype(np.float64)
    p_bar, t_bar = (tokens @ x / tokens.sum() for x in (p_flat, t_flat))
    dp, dt = p_flat - p_bar, t_flat - t_bar
    expected = (tokens * dp) @ dt / np.sqrt((tokens * dp) @ dp * ((tokens * dt) @ dt))
    found = correlation(p, t, np.ones(p.shape, dtype=bool), w).value
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_ceiling_is_the_formula() -> None:
    from scopenote.evaluate.correlation import MeanAndSd
    from scopenote.evaluate.silence import Silence, ceiling

    t_bar, sd, q, m, s = 0.3, 1.7, 0.9, 0.05, 0.2
    V = sd**2
    expected = (V - q * m * t_bar) / np.sqrt(
        V * (V - 2 * q * m * t_bar + q * s**2 + q * (1 - q) * m**2)
    )
    found = ceiling(MeanAndSd(t_bar, sd), Silence(q, MeanAndSd(m, s)))
    assert found == pytest.approx(expected)
