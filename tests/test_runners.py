"""Where tasks work: the same tables, calls and limits in threads and on Dask's workers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scopenote.extract.corpus import CorpusSource
from scopenote.flows.asked_features import AskTerms, LabelDatabase, LabelWriter
from scopenote.flows.collected_parts import CollectWork
from scopenote.flows.config import demo_config, differing_keys, load_config
from scopenote.flows.embedded_labels import ExplainWork
from scopenote.flows.explain_settings import ExplainSection
from scopenote.flows.rate_job import RateStep, RateTerms
from scopenote.flows.rate_steps import opinion_step
from scopenote.flows.rated_labels import OpenJudge, ScoreDatabase
from scopenote.flows.score_settings import ScoreSection
from scopenote.flows.shares import Share
from scopenote.flows.stage_commands import with_runner
from scopenote.store.errors import ConfigurationError
from scopenote.store.run_folder import RunFolder

from .asking_runs import (
    ALL_CALLS,
    KEY,
    command,
    environment,
    label_reply,
    rows,
    runs_that_ask,
    words_of,
)
from .fake_openai import Answer, Asked, reply, serve
from .pipeline_runs import run, tables, write_configuration
from .rating_runs import N_FEATURES, runs_that_rate, write_and_rate

TWO_WORKERS = '[runner]\nkind = "dask"\nworkers = 2\n'


def descriptions() -> list[Any]:
    """One of everything that is sent to a worker; the same each time."""
    config, folder = demo_config(), Path("/runs/one")
    explain, score = ExplainSection(), ScoreSection()
    return [
        ExplainWork("token_lookup", folder, "revision", "run"),
        AskTerms(explain, folder, "run", "listener"),
        LabelWriter(explain, 2),
        LabelDatabase(folder, "revision", False),
        RateTerms("chat", score, RunFolder(folder), "run"),
        OpenJudge("chat", score, 2),
        ScoreDatabase(folder, "revision", "score", score, False),
        Share("name", Decimal(1), Decimal("0.5"), Decimal("0.5")),
        CollectWork(config, folder, CorpusSource(standard_library=True), (), {}, False),
    ]


@pytest.mark.parametrize("number", range(9))
def test_what_is_sent_to_a_worker_arrives_as_it_was(number: int) -> None:
    sent, same = descriptions()[number], descriptions()[number]
    content = pickle.dumps(sent)
    assert pickle.loads(content) == sent == same
    assert len(content) < 10_000


def test_what_a_worker_does_with_a_label_can_be_sent() -> None:
    step = opinion_step("detection", {})
    arrived: RateStep = pickle.loads(pickle.dumps(step))
    assert (arrived.purpose, arrived.split) == ("detection", "score")


WORK = ("asked_features", "embedded_labels", "lookup_scores", "rated_labels", "worker_check")


def test_what_workers_import_needs_no_prefect() -> None:
    """Where it is imported, Prefect makes a home in the user's."""
    imports = "\n".join(f"import scopenote.flows.{name}" for name in WORK)
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys\n{imports}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "scopenote.flows.rated_labels" in loaded
    assert not {"prefect", "torch"} & set(loaded)


def test_where_tasks_work_may_change_in_a_run(tmp_path: Path) -> None:
    config = demo_config()
    on_dask = with_runner(config, "dask")
    assert on_dask.runner.kind == "dask"
    assert with_runner(config, None) == config
    assert differing_keys(config, on_dask) == {}
    file = tmp_path / "run.toml"
    file.write_text(on_dask.to_toml())
    assert load_config(file) == on_dask


def test_a_cluster_that_is_there_has_its_own_workers(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(demo_config().to_toml().partition("[runner]")[0] + TWO_WORKERS)
    assert load_config(file).runner.workers == 2
    with file.open("a") as more:
        more.write('address = "tcp://127.0.0.1:1"\n')
    with pytest.raises(ConfigurationError, match="`workers` only without `address`"):
        load_config(file)


WITHOUT_DASK = """
import sys
sys.modules["prefect_dask"] = None
from scopenote.flows.cli import main
main()
"""


@pytest.mark.slow
def test_without_dask_it_is_said_what_to_install(collected: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(collected, folder)
    refused = subprocess.run(
        [sys.executable, "-c", WITHOUT_DASK, "explain", str(folder), "--runner", "dask"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert refused.returncode == 2, refused.stderr
    assert "pip install 'scopenote[dask]'" in refused.stderr


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_cluster_that_is_there_is_used_and_left_to_others(
    collected: Path, tmp_path: Path
) -> None:
    from distributed import LocalCluster  # a second, which other tests need not wait for

    folder = tmp_path / "run"
    shutil.copytree(collected, folder)
    config = folder / "run.toml"
    settings = config.read_text().partition("[runner]")[0]
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        config.write_text(f'{settings}[runner]\nkind = "dask"\naddress = "{address}"\n')
        explained = command("explain", folder)
        assert explained.returncode == 0, explained.stderr
        with cluster.get_client() as client:
            (state,) = client.run(what_is_open).values()
            assert state == []
            assert len(client.nthreads()) == 1
    ((n_labels,),) = rows(folder, "SELECT count(*) FROM labels WHERE explainer = 'token_lookup'")
    assert n_labels > 2000
    refused = command("score", folder)
    assert refused.returncode == 2, refused.stderr
    assert "No Dask scheduler with workers answers." in refused.stderr
    assert address in refused.stderr


def what_is_open() -> list[str]:
    """In a worker: what it holds, database and model."""
    from scopenote.flows import worker_state

    return list(worker_state._process.opened)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_two_workers_make_the_tables_that_one_process_makes(tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    for name in ("threads", "dask"):
        if name == "dask":
            with config.open("a") as more:
                more.write(TWO_WORKERS)
        finished = run("run", config, "--out", tmp_path / name)
        assert finished.returncode == 0, finished.stderr
        assert "1 bad rows skipped: 1 not JSON" in finished.stderr
    assert tables(tmp_path / "threads") == tables(tmp_path / "dask")


@pytest.fixture
def rating(collected: Path, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Makes runs of a name, on two workers or in threads.

    One label a feature: the script tells draws apart by the order in which they arrive.
    """

    def make(fake: Any, name: str, **more: Any) -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        made, config = runs_that_rate(collected, folder, candidates=1)(fake, **more)
        settings = config.read_text().replace(f"features = {N_FEATURES}", "features = 40")
        config.write_text(settings + TWO_WORKERS * (name == "dask"))
        return made, config

    return make


def write_apart_and_rate(asked: Asked) -> Answer:
    """No two features get one label: of requests that are alike, two workers may both send one."""
    answer = write_and_rate(asked)
    key = b'\\"label\\": \\"'
    return replace(
        answer, body=answer.body.replace(key, key + asked.conversation[:8].encode() + b" ")
    )


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_two_workers_ask_what_one_process_asks(rating: Any) -> None:
    n_asked, made = {}, {}
    for name in ("threads", "dask"):
        with serve(write_apart_and_rate, keeps_requests=False) as fake:
            folder, config = rating(fake, name)
            explained = command("explain", folder, "--config", config, key=KEY)
            assert explained.returncode == 0, explained.stderr
            scored = command("score", folder, "--config", config, key=KEY)
            assert scored.returncode == 0, scored.stderr
            n_asked[name], made[name] = fake.n_asked, tables(folder)
            ((n_calls,),) = rows(folder, f"SELECT count(*) FROM {ALL_CALLS}")
            assert n_calls == fake.n_asked

    assert n_asked["threads"] == n_asked["dask"] > 300
    assert made["threads"] == made["dask"]


def worker_processes(flow: subprocess.Popen[str]) -> list[int]:
    """The processes that the flow's Dask has begun as workers, oldest first."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == flow.pid and "multiprocessing" in words and "resource_tracker" not in words:
            found.append(int(process.name))
    return sorted(found)


def kill_a_worker(flow: subprocess.Popen[str], is_due: Callable[[], bool]) -> bool:
    """Kills a worker once that is due; gives whether it came to it."""
    deadline = time.monotonic() + 400
    while flow.poll() is None and time.monotonic() < deadline:
        if (workers := worker_processes(flow)) and is_due():
            os.kill(workers[0], signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_worker_that_is_killed_costs_no_table_and_no_call_twice(rating: Any) -> None:
    def slowly(asked: Asked) -> Answer:
        return replace(write_apart_and_rate(asked), after_seconds=0.02)

    made, n_asked, in_flight = {}, {}, 16
    for name in ("threads", "dask"):
        with serve(slowly, keeps_requests=False) as fake:
            folder, config = rating(fake, name, concurrency=in_flight)
            explained = command("explain", folder, "--config", config, key=KEY)
            assert explained.returncode == 0, explained.stderr
            n_due = fake.n_asked + 250
            flow = subprocess.Popen(
                words_of("score", folder), stderr=subprocess.PIPE, text=True, env=environment(KEY)
            )
            if name == "dask":
                assert kill_a_worker(flow, lambda n=n_due, fake=fake: fake.n_asked > n)
            _, said = flow.communicate(timeout=500)
            assert flow.returncode == 0, said
            n_asked[name], made[name] = fake.n_asked, tables(folder)
            ((n_calls,),) = rows(folder, f"SELECT count(*) FROM {ALL_CALLS}")
            # A call whose answer had not come when its worker died is sent again.
            assert fake.n_asked - in_flight <= n_calls <= fake.n_asked
    assert made["threads"] == made["dask"]
    assert n_asked["threads"] <= n_asked["dask"] <= n_asked["threads"] + in_flight


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("runner", "concurrency"), [("thread", 1), ("thread", 32), ("dask", 1), ("dask", 32)]
)
def test_a_budget_of_a_dollar_is_spent_and_not_exceeded(
    collected: Path, tmp_path: Path, runner: str, concurrency: int
) -> None:
    def dear(asked: Asked) -> Answer:
        answer = label_reply(asked)
        return reply(json.loads(answer.body)["choices"][0]["message"]["content"], 8000, 0, 400)

    asking = runs_that_ask(collected, tmp_path)
    with serve(dear, keeps_requests=False) as fake:
        prices = tmp_path / "prices.toml"
        prices.write_text(
            'as_of = "2026-11"\n[models."dear"]\ninput = 1.0\ncached_input = 1.0\n'
            "output = 5.0\nbatch_share = 0.5\n"
        )
        folder, config = asking(
            fake, 400, model="dear", prices=str(prices), concurrency=concurrency
        )
        with config.open("a") as more:
            more.write(TWO_WORKERS.replace("dask", runner))
        stopped = command(
            "explain", folder, "--config", config, "--budget-usd", "1.00", key=KEY, timeout=500
        )
        assert stopped.returncode == 1, stopped.stderr
        assert "The budget does not cover the next call." in stopped.stderr
        ((usd, n_calls),) = rows(folder, f"SELECT sum(usd), count(*) FROM {ALL_CALLS}")
    assert fake.n_asked == n_calls
    # A call costs a cent, and what it may cost at most is not much more.
    assert Decimal("0.95") <= usd <= 1


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_worker_that_is_killed_while_it_collects_changes_no_table(tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    plain = run("collect", tmp_path / "threads", "--config", config)
    assert plain.returncode == 0, plain.stderr
    with config.open("a") as more:
        more.write(TWO_WORKERS)
    folder = tmp_path / "dask"
    flow = subprocess.Popen(
        words_of("collect", folder, "--config", config), stderr=subprocess.PIPE, text=True
    )
    assert kill_a_worker(flow, lambda: any(folder.glob("parts/.unfinished-*")))
    _, said = flow.communicate(timeout=500)
    assert flow.returncode == 0, said
    assert tables(tmp_path / "threads") == tables(folder)
