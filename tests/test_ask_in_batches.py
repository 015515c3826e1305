"""Labels by way of batches as a user gets them: submit, leave, come back, also after a kill."""

from __future__ import annotations

import json
import random
import shutil
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
    KEY,
    asking_configuration,
    assert_the_ledger_is_the_servers,
    command,
    environment,
    files_with_the_key,
    label_reply,
    rows,
    words_of,
)
from .fake_batches import AT_ONCE, Course, FakeBatches, Interruption, Route
from .fake_openai import (
    DROP,
    HANG,
    Answer,
    Asked,
    FakeOpenAI,
    error,
    refusal,
    reply,
    running,
    serve,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

HALF = Decimal("0.5")
DONE, FAILED, MISTAKE, WITH_FAILURES = 0, 1, 2, 3
HANG_HALFWAY = Answer("hang", then="hang halfway")


@pytest.fixture
def asking(collected: Path, tmp_path: Path) -> Any:
    """Makes a run of one's own that asks this server about so many features, in batches."""

    def make(fake: FakeOpenAI, features: int, name: str = "run", **chat: Any) -> tuple[Path, Path]:
        run = tmp_path / name
        if not run.exists():
            shutil.copytree(collected, run)
        config = tmp_path / f"{name}.toml"
        chat = {"batch": True, **chat}
        config.write_text(asking_configuration(collected.parent, fake.base_url, features, **chat))
        return run, config

    return make


def explain(
    run: Path, *words: str | Path, expected: int | None = DONE
) -> subprocess.CompletedProcess[str]:
    finished = command("explain", run, *words, key=KEY)
    is_expected = finished.returncode in (
        (DONE, WITH_FAILURES) if expected is None else (expected,)
    )
    assert is_expected, finished.stdout + finished.stderr
    assert KEY not in finished.stdout + finished.stderr
    return finished


def sometimes_bad(asked: Asked) -> Answer:
    """Some replies have to be repaired, and some stay bad; always the same ones."""
    drawn = random.Random(asked.conversation).random()
    if drawn < 0.1:
        return reply('{"explanation": "They were ma', 700, 300, 9)
    return refusal() if drawn < 0.12 else label_reply(asked)


LABELS = (
    "SELECT label_id, sae_id, feature, text, explanation, prompt_version, model, request_hash, "
    "draw, status, reason, n_dropped_contexts FROM labels WHERE explainer = 'highlighted' "
    "ORDER BY label_id"
)


def n_labels(run: Path) -> int:
    query = f"SELECT count(text) FROM ({LABELS})"
    return int(rows(run, query)[0][0])


def test_labels_by_batches_are_those_by_single_calls(asking: Any) -> None:
    n = 300
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


def test_a_provider_in_trouble_gets_each_batch_once(asking: Any) -> None:
    troubles = {
        "upload": [Interruption(error(500))],
        "create": [Interruption(DROP), Interruption(error(500), is_done=False), None],
        "list": [Interruption(error(502))],
        "content": [Interruption(Answer("drop", then="drop halfway"))],
    }
    with running(FakeBatches(label_reply, interruptions=troubles)) as fake:
        run, config = asking(fake, 100)
        explain(run, "--config", config, "--wait")
        assert len(fake.batches) == 1
        assert_the_ledger_is_the_servers(run, fake, HALF)
    assert n_labels(run) > 80


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


def test_what_the_provider_lets_wait_is_found_and_kept(asking: Any) -> None:
    message = "Enqueued token limit reached for m. Limit: 100,000 enqueued tokens. Please try"

    def courses(number: int) -> Course:
        too_much = Course(("validating", "failed"), failure=("token_limit_exceeded", message))
        return AT_ONCE if number else too_much

    with running(FakeBatches(label_reply, courses)) as fake:
        run, config = asking(fake, 300)
        finished = explain(run, "--config", config, "--wait")
        assert_the_ledger_is_the_servers(run, fake, HALF)
    assert "batch batch_0 failed with" in finished.stderr
    tokens = [count for (count,) in rows(run, "SELECT n_tokens FROM batches ORDER BY prepared_at")]
    assert tokens[0] > 200_000
    assert len(tokens) > 3
    assert max(tokens[1:]) <= 100_000
    assert min(tokens[1:-1]) > 90_000
    assert n_labels(run) > 250


@pytest.mark.parametrize(
    ("failure", "interruptions", "message"),
    [
        (("invalid_model", "no batches for it"), {}, "the provider refused a batch as a whole"),
        (None, {"create": [Interruption(error(400, "not you"), False)]}, "not you"),
        (None, {"upload": [Interruption(error(404), False)]}, "batch = false"),
    ],
)
def test_what_is_refused_as_a_whole_stops_and_may_be_tried_again(
    asking: Any, failure: Any, interruptions: Any, message: str
) -> None:
    def courses(number: int) -> Course:
        return AT_ONCE if number or failure is None else Course(("failed",), failure=failure)

    with running(FakeBatches(label_reply, courses, interruptions)) as fake:
        run, config = asking(fake, 60)
        stopped = explain(run, "--config", config, "--wait", expected=MISTAKE)
        assert message in stopped.stderr
        assert fake.counts["reply"] == 0
        explain(run, "--wait")
        assert_the_ledger_is_the_servers(run, fake, HALF)
    assert n_labels(run) > 40


def test_what_is_in_a_batch_is_not_asked_for_singly(asking: Any) -> None:
    with running(FakeBatches(label_reply, lambda number: Course(("in_progress",)))) as fake:
        run, config = asking(fake, 60)
        explain(run, "--config", config)
        run, config = asking(fake, 100, batch=False)
        left = explain(run, "--config", config)
        assert "labels wait for answers" in left.stderr
        assert 20 < fake.n_asked == fake.counts["reply"] <= 40
        assert 20 < n_labels(run) <= 40
        fake.batches["batch_0"].course = AT_ONCE
        explain(run)
        assert fake.sent_after_reply == []
        assert len(fake.batches) == 1
    assert n_labels(run) > 60


def test_a_failure_that_is_asked_for_again_gives_way_to_the_reply(asking: Any) -> None:
    is_down = True

    def down_at_first(asked: Asked) -> Answer:
        hopeless = int(asked.conversation, 16) % 5 == 0
        return error(503, "down") if is_down and hopeless else label_reply(asked)

    with running(FakeBatches(down_at_first)) as fake:
        run, config = asking(fake, 60)
        explain(run, "--config", config, "--wait", expected=WITH_FAILURES)
        n_before = n_labels(run)
        is_down = False
        left = explain(run, "--retry-failed")
        assert "in 1 batch at the provider" in left.stderr
        explain(run, "--wait")
        assert fake.sent_after_reply == []
        assert n_labels(run) > n_before
        assert_the_ledger_is_the_servers(run, fake, HALF)
    assert rows(run, f"SELECT count(*) FROM ({LABELS}) WHERE reason LIKE 'no reply%'") == [(0,)]


def test_an_endpoint_without_json_schema_is_asked_without_in_the_next_batch(asking: Any) -> None:
    def with_little(asked: Asked) -> Answer:
        if (asked.body.get("response_format") or {}).get("type") == "json_schema":
            return error(400, "response_format json_schema is not supported")
        return label_reply(asked)

    with running(FakeBatches(with_little)) as fake:
        run, config = asking(fake, 60)
        finished = explain(run, "--config", config, "--wait")
        assert "the endpoint has no json_schema: " in finished.stderr
        assert len(fake.batches) == 2
    assert n_labels(run) > 40
