"""The whole job as a user starts it: a process, a real Prefect, real files, and kill -9."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scopenote
from scopenote.store.splits import SPLITS

from .pipeline_runs import (
    TABLES,
    collect_three_shards,
    command,
    processes_in,
    run,
    tables,
    wait_for_work,
    write_configuration,
)

pytestmark = pytest.mark.slow  # the whole job, which takes half a minute by itself


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configuration(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    finished = run("run", config, "--out", folder)
    assert finished.returncode == 0, finished.stderr
    (folder / "stderr.txt").write_text(finished.stderr)
    return folder


def test_one_command_makes_labels_with_held_out_scores(undisturbed: Path) -> None:
    with scopenote.open(undisturbed) as store:
        n_labels, n_scored = store.sql(
            "SELECT count(*), count(score) FROM current_labels"
        ).fetchall()[0]
        splits = {row[0] for row in store.sql("SELECT DISTINCT split FROM scores").fetchall()}
        statuses = store.sql("SELECT status FROM runs").fetchall()
        null_scores_without_reason = store.sql(
            "SELECT count(*) FROM scores WHERE value IS NULL AND reason IS NULL"
        ).fetchall()[0][0]
    assert n_labels > 900
    assert n_scored > 500
    assert splits == {"score"}
    assert statuses == [("done",)]
    assert null_scores_without_reason == 0


def test_every_feature_has_output_tokens_and_neighbours(undisturbed: Path) -> None:
    with scopenote.open(undisturbed) as store:
        lists = store.sql(
            """
            SELECT DISTINCT len(top_tokens_positive), len(top_logits_positive),
                len(top_tokens_negative), len(top_logits_negative)
            FROM features
            """
        ).fetchall()
        kinds = store.sql(
            "SELECT kind, count(DISTINCT (sae_id, feature)), max(rank) FROM neighbours "
            "GROUP BY kind ORDER BY kind"
        ).fetchall()
        n_features, n_firing = store.sql(
            """
            SELECT count(*), count(*) FILTER (EXISTS (
                FROM background b WHERE b.sae_id = f.sae_id AND b.feature = f.feature))
            FROM features f
            """
        ).fetchall()[0]
    assert lists == [(10, 10, 10, 10)]
    assert kinds[1] == ("cosine", n_features, 10)
    kind, n_cofiring, most = kinds[0]
    assert (kind, most) == ("cofiring", 10)
    assert n_firing / 2 < n_cofiring <= n_firing


def test_every_feature_that_fires_has_the_tokens_that_its_label_lists(undisturbed: Path) -> None:
    with scopenote.open(undisturbed) as store:
        without = store.sql(
            "SELECT count(*) FROM features SEMI JOIN current_labels USING (sae_id, feature) "
            "WHERE len(top_tokens) = 0 OR top_tokens IS NULL"
        ).fetchall()
        ordered = store.sql(
            "SELECT DISTINCT list_reverse_sort(top_token_means) = top_token_means, "
            "len(top_tokens) = len(top_token_means) AND len(top_tokens) = len(top_token_counts) "
            "FROM features"
        ).fetchall()
        # The label spells tokens as a reader sees them: without outer spaces.
        first_of_label, first = zip(
            *store.sql(
                "SELECT text.split('”')[1][2:], trim(top_tokens[1]) FROM current_labels "
                "JOIN features USING (sae_id, feature) WHERE regexp_matches(top_tokens[1], '\\w')"
            ).fetchall(),
            strict=True,
        )
    assert without == [(0,)]
    assert ordered == [(True, True)]
    assert first_of_label == first
    assert len(first) > 500


def test_the_bad_and_the_empty_row_are_counted_and_said(undisturbed: Path) -> None:
    said = (undisturbed / "stderr.txt").read_text()
    with scopenote.open(undisturbed) as store:
        summary = json.loads(store.sql("SELECT summary FROM runs").fetchall()[0][0])
    for text in (said, json.dumps(summary)):
        assert "1 bad rows skipped: 1 not JSON" in text
        assert "corpus.jsonl:101" in text
        assert "1 empty rows skipped" in text


def test_the_published_copy_keeps_the_splits_apart(undisturbed: Path) -> None:
    with scopenote.open(undisturbed) as store:
        shared = store.sql(
            """
            SELECT count(*) FROM windows a JOIN windows b
                ON (a.doc_id = b.doc_id OR a.token_ids = b.token_ids) AND a.split <> b.split
            """
        ).fetchall()
        splits = store.sql("SELECT DISTINCT split FROM windows").fetchall()
    assert {row[0] for row in splits} == set(SPLITS)
    assert shared == [(0,)]


def test_no_process_is_left_behind(undisturbed: Path) -> None:
    assert processes_in(undisturbed) == []


def test_prefect_keeps_to_the_runs_own_folder(undisturbed: Path) -> None:
    assert (undisturbed / "prefect" / "prefect.db").is_file()


@pytest.mark.slow
def test_a_second_run_does_no_work_and_says_so(config: Path, undisturbed: Path) -> None:
    before = tables(undisturbed)
    again = run("run", config, "--out", undisturbed)
    assert again.returncode == 0
    for stage in ("collect", "explain", "score"):
        assert f"{stage}: nothing to do" in again.stdout + again.stderr
    assert tables(undisturbed) == before


def test_a_second_run_at_the_same_time_is_refused(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "busy"
    first = subprocess.Popen(command("run", config, "--out", folder), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "run.lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        second = run("run", config, "--out", folder)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert str(first.pid) in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.slow
def test_ctrl_c_ends_soon_with_one_message_and_keeps_what_is_finished(
    config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        command("run", config, "--out", folder), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((folder / "parts").glob("collect-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "scopenote run" in said.replace(f"{sys.executable} -m scopenote.flows.cli", "scopenote")
    assert list((folder / "parts").glob("collect-*"))
    assert processes_in(folder) == []


@pytest.mark.long
def test_five_kills_at_random_moments_change_nothing(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for _ in range(5):
        process = subprocess.Popen(
            command("run", config, "--out", folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        wait_for_work(folder, process)
        time.sleep(moments.uniform(0, 6))
        process.kill()
        process.communicate()
    finished = run("run", config, "--out", folder)
    assert finished.returncode == 0, finished.stderr
    expected, found = tables(undisturbed), tables(folder)
    for table in TABLES:
        assert found[table] == expected[table], (table, seed)
    assert not list((folder / "parts").glob(".unfinished-*"))
    time.sleep(5)  # the last killed run's server ends by itself
    assert processes_in(folder) == []


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_shards_collected_at_once_and_brought_together_give_the_same_tables(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    collect_three_shards(folder, config)
    assert not (folder / "work.duckdb").exists()
    assert len(list((folder / "parts").iterdir())) == 3
    finished = run("run", folder)
    assert finished.returncode == 0, finished.stderr
    assert tables(folder) == tables(undisturbed)
    again = run("collect", folder, "--shard", "2/3")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr


@pytest.mark.long
def test_losses_asked_for_later_are_measured_once_as_if_asked_for_at_first(
    config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    asked = config.with_name("asked.toml")
    asked.write_text(config.read_text().replace("[collect]", "[collect]\nloss_increase = true"))
    later, at_first = tmp_path / "later", tmp_path / "at-first"
    shutil.copytree(undisturbed, later)
    finished = run("run", asked, "--out", later)
    assert finished.returncode == 0, finished.stderr
    assert "with an SAE's reconstruction spliced in" in finished.stderr
    assert "Next-token loss" in finished.stdout
    expected, found = tables(undisturbed), tables(later)
    assert {table for table in TABLES if found[table] != expected[table]} == {"saes"}
    with scopenote.open(later) as store:
        own, spliced, zeroed, n_tokens = store.sql(
            "SELECT loss, loss_spliced, loss_zeroed, n_loss_tokens FROM saes"
        ).fetchall()[0]
    # Guessing among the toy's 4,096 tokens costs 8.3 nats.
    assert 1 < own < spliced < zeroed
    assert own < 6
    # The tokens after the last one of each of at most 300 documents are not predicted.
    assert 7800 < n_tokens < 9216

    again = run("run", asked, "--out", later)
    assert "collect: nothing to do" in again.stderr
    assert "spliced in" not in again.stderr
    assert tables(later) == found

    collected = run("collect", at_first, "--config", asked)
    assert collected.returncode == 0, collected.stderr
    assert tables(at_first)["saes"] == found["saes"]
