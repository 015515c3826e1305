"""Labels by way of batches as a user gets them: submit, leave, come back, also after a kill."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scopenote.label.explainers import NEVER_ACTIVE

from .asking_runs import (
    ALL_CALLS,
    FAILED,
    HALF,
    KEY,
    LABELS,
    WITH_FAILURES,
    assert_the_ledger_is_the_servers,
    command,
    environment,
    explain,
    files_with_the_key,
    label_reply,
    n_labels,
    rows,
    runs_that_ask,
    words_of,
)
from .fake_batches import AT_ONCE, Course, FakeBatches, Interruption, Route
from .fake_openai import (
    HANG,
    Answer,
    Asked,
    error,
    refusal,
    reply,
    running,
    serve,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

HANG_HALFWAY = Answer("hang", then="hang halfway")


@pytest.fixture
def asking(collected: Path, tmp_path: Path) -> Any:
    return runs_that_ask(collected, tmp_path, batch=True)


def sometimes_bad(asked: Asked) -> Answer:
    """Some replies have to be repaired, and some stay bad; always the same ones."""
    drawn = random.Random(asked.conversation).random()
    if drawn < 0.1:
        return reply('{"explanation": "They were ma', 700, 300, 9)
    return refusal() if drawn < 0.12 else label_reply(asked)


@pytest.mark.long
def test_labels_by_batches_are_those_by_single_calls(asking: Any) -> None:
    n = 150
    with serve(sometimes_bad) as fake:
        direct, config = asking(fake, n, name="direct", batch=False)
        explain(direct, "--config", config, expected=WITH_FAILURES)
    expected = rows(direct, LABELS)

    def courses(number: int) -> Course:
        return AT_ONCE if number else Course(("validating", "in_progress", "completed"))

    with running(FakeBatches(sometimes_bad, courses)) as fake:
        run, config = asking(fake, n)
        left = explain(run, "--config", config)
        assert len(fake.batches) == 1
        n_requests = len(fake.batches["batch_0"].lines)
        assert f"{n_requests:,} requests in 1 batch at the provider" in left.stderr
        assert f"explain {run}` brings in what is done" in left.stderr
        assert n_labels(run) == 0
        (under_way,) = json.loads(command("status", run, "--json").stdout)["batches"]
        assert (under_way["provider_id"], under_way["n_requests"]) == ("batch_0", n_requests)

        again = explain(run)
        assert (fake.counts["reply"], n_labels(run)) == (0, 0)
        assert "in 1 batch at the provider" in again.stderr
        assert len(fake.batches) == 1

        # The next brings in what is done, and submits the repairs of bad replies.
        explain(run, expected=WITH_FAILURES)
        assert 0.8 * n_requests < n_labels(run) < n_requests
        assert len(fake.batches) == 2
        assert 0 < len(fake.batches["batch_1"].lines) < 0.2 * n_requests
        explain(run, expected=None)
        assert "nothing to do" in explain(run).stderr
        assert len(fake.batches) == 2

        assert max(fake.times_executed.values()) == 1
        assert fake.sent_after_reply == []
        assert_the_ledger_is_the_servers(run, fake, HALF)
    assert rows(run, LABELS) == expected
    assert files_with_the_key(run) == []
    assert json.loads(command("status", run, "--json").stdout)["batches"] == []
    assert list((run / "batches").iterdir()) == []
    ((label_id,),) = rows(run, f"SELECT min(label_id) FROM ({LABELS}) WHERE status = 'done'")
    replayed = command("replay", run, label_id)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


@pytest.mark.long
def test_what_expired_or_failed_is_submitted_again_and_paid_for_once(asking: Any) -> None:
    def hiccups(asked: Asked) -> Answer:
        drawn = random.Random(asked.conversation).random()
        if drawn < 0.1 and not asked.times_before:
            return error(500, "hiccup")
        if drawn > 0.98:
            return error(503, "never")
        return label_reply(asked)

    courses = [
        Course(("in_progress", "expired"), n_answered=100, n_left_out=5),
        Course(("validating", "cancelled"), n_answered=80),
        Course(("failed",), failure=("token_limit_exceeded", "Enqueued token limit reached")),
        AT_ONCE,
    ]
    with running(FakeBatches(hiccups, lambda number: courses[min(number, 3)])) as fake:
        run, config = asking(fake, 250)
        finished = explain(run, "--config", config, "--wait", expected=WITH_FAILURES)
        assert "batch batch_0 expired with" in finished.stderr
        assert "batch batch_1 was cancelled with" in finished.stderr
        assert fake.sent_after_reply == []
        assert_the_ledger_is_the_servers(run, fake, HALF)
        n_batches = len(fake.batches)
        assert "nothing to do" in explain(run, "--wait").stderr
        assert len(fake.batches) == n_batches
        tries = [times for times in fake.times_executed.values() if times > 1]
        assert tries
        assert max(tries) <= 3
        n_failed = len(fake.times_executed) - fake.counts["reply"]
    states = rows(run, "SELECT state FROM batches ORDER BY prepared_at LIMIT 3")
    assert states == [("expired",), ("cancelled",), ("failed",)]
    failures = rows(
        run,
        f"SELECT reason FROM ({LABELS}) WHERE reason IS DISTINCT FROM '{NEVER_ACTIVE}' "
        "AND status = 'failed'",
    )
    assert 0 < len(failures) < 25
    assert {reason for (reason,) in failures} == {"no reply from the model: server error"}
    assert rows(run, "SELECT count(*) FROM calls WHERE reply IS NULL") == [(n_failed,)]
    assert rows(run, "SELECT min(attempts) FROM calls WHERE reply IS NULL") == [(3,)]


def killed_when(run: Path, condition: Callable[[], bool], *words: str | Path) -> None:
    process = subprocess.Popen(
        words_of("explain", run, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(KEY),
    )
    while not condition():
        assert process.poll() is None, "it was to be killed at work"
        time.sleep(0.001)
    process.kill()
    process.wait()


@pytest.mark.long
def test_killed_anywhere_a_batch_is_made_once_and_brought_in_once(asking: Any) -> None:
    with running(FakeBatches(label_reply, lambda number: Course(("in_progress",)))) as fake:
        run, config = asking(fake, 2000)

        def dies_at(route: Route, interruption: Interruption) -> None:
            fake.interruptions[route] = [interruption]
            n_before = fake.arrived[route]
            killed_when(run, lambda: fake.arrived[route] > n_before, "--config", config)

        dies_at("upload", Interruption(HANG))
        dies_at("create", Interruption(HANG, is_done=False))
        assert len(fake.batches) == 0
        dies_at("create", Interruption(HANG))
        assert len(fake.batches) == 1
        dies_at("list", Interruption(HANG))
        explain(run)
        assert len(fake.batches) == 1
        assert rows(run, "SELECT provider_id FROM batches") == [("batch_0",)]
        dies_at("retrieve", Interruption(HANG))
        (batch,) = fake.batches.values()
        batch.course = AT_ONCE
        dies_at("content", Interruption(HANG_HALFWAY))
        assert rows(run, f"SELECT count(*) FROM {ALL_CALLS}") == [(0,)]

        def is_reading() -> bool:
            with suppress(FileNotFoundError):
                return any(f.stat().st_size > 50_000 for f in (run / "journal").iterdir())
            return False

        killed_when(run, is_reading)
        n_requests = len(batch.lines)
        assert n_labels(run) == 0
        finished = explain(run)
        assert f"{n_requests:,} calls" not in finished.stderr, "some were on record already"
        assert n_requests > 1500
        assert len(fake.batches) == 1
        assert max(fake.times_executed.values()) == 1
        assert_the_ledger_is_the_servers(run, fake, HALF)
    ((n_calls, n_distinct),) = rows(
        run, f"SELECT count(*), count(DISTINCT request_hash) FROM {ALL_CALLS}"
    )
    assert n_calls == n_distinct == n_requests
    assert n_labels(run) >= n_requests
    assert list((run / "batches").iterdir()) == []


@pytest.mark.long
def test_a_budget_counts_what_batches_under_way_may_cost(asking: Any) -> None:
    limit = Decimal("0.0025")
    with running(FakeBatches(label_reply)) as fake:
        run, config = asking(fake, 100)
        budget = ("--budget-usd", str(limit))
        left = explain(run, "--config", config, *budget)
        assert "requests wait: the batches under way may cost all that the budget leaves" in (
            left.stderr
        )
        n_first = len(fake.batches["batch_0"].lines)
        assert 1 < n_first < 50
        ((most,),) = rows(run, "SELECT most_usd FROM batches")
        assert limit / 2 < most <= limit
        # Nothing more is sent before it is known what that came to.
        fake.batches["batch_0"].course = Course(("in_progress",) * 9)
        explain(run, *budget)
        assert len(fake.batches) == 1
        fake.batches["batch_0"].course = AT_ONCE
        stopped = explain(run, "--wait", *budget, expected=FAILED)
        assert "The budget does not cover the next call." in stopped.stderr
        ((usd, n_calls),) = rows(run, f"SELECT sum(usd), count(*) FROM {ALL_CALLS}")
        assert limit / 2 < usd <= limit
        assert n_calls == fake.counts["reply"] > n_first
        assert json.loads(command("status", run, "--json").stdout)["batches"] == []
        explain(run, "--wait", "--budget-usd", "9")
        assert fake.sent_after_reply == []
        assert_the_ledger_is_the_servers(run, fake, HALF)
