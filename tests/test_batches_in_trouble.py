"""Batches at a provider in trouble, or that refuses them: paid for once, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .asking_runs import (
    HALF,
    LABELS,
    MISTAKE,
    WITH_FAILURES,
    assert_the_ledger_is_the_servers,
    explain,
    label_reply,
    n_labels,
    rows,
    runs_that_ask,
)
from .fake_batches import AT_ONCE, Course, FakeBatches, Interruption
from .fake_openai import DROP, Answer, Asked, error, running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def asking(collected: Path, tmp_path: Path) -> Any:
    return runs_that_ask(collected, tmp_path, batch=True)


@pytest.mark.long
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


@pytest.mark.long
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
        pytest.param(
            None,
            {"create": [Interruption(error(400, "not you"), False)]},
            "not you",
            marks=pytest.mark.long,
        ),
        pytest.param(
            None,
            {"upload": [Interruption(error(404), False)]},
            "batch = false",
            marks=pytest.mark.long,
        ),
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


@pytest.mark.long
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
