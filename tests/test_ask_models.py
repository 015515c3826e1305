"""Labels from a language model as a user gets them: a process, real HTTP, a real database."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scopenote.label.explainers import NEVER_ACTIVE
from scopenote.label.labelling import DECLINED

from .asking_runs import (
    ALL_CALLS,
    KEY,
    assert_the_ledger_is_the_servers,
    command,
    environment,
    files_with_the_key,
    label_reply,
    rows,
    runs_that_ask,
    words_of,
)
from .fake_openai import (
    DROP,
    DROP_HALFWAY,
    HANG,
    Answer,
    Asked,
    error,
    refusal,
    reply,
    serve,
    too_many,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

N_FEATURES = 2000


@pytest.fixture
def asking(collected: Path, tmp_path: Path) -> Any:
    return runs_that_ask(collected, tmp_path)


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands start Prefect's server themselves, in the run's folder, as most users have it."""
    monkeypatch.delenv("PREFECT_API_URL")


def chaos(asked: Asked) -> Answer:
    """The mixture that the endpoint answers with; what is wrong with a reply stays wrong."""
    drawn = random.Random(f"{asked.conversation} {asked.times_before}").random()
    for share, answer in (
        (0.10, too_many("0.05")),
        (0.05, error(500)),
        (0.015, DROP),
        (0.015, DROP_HALFWAY),
        (0.02, HANG),
    ):
        if drawn < share:
            return answer
        drawn -= share
    drawn = random.Random(asked.conversation).random()
    good = label_reply(asked)
    if drawn < 0.05:
        return reply('{"explanation": "They were ma', 700, 300, 9)
    if drawn < 0.06:
        return reply("", 700, 300, 0)
    if drawn < 0.07:
        return refusal()
    return replace(good, after_seconds=0.02)


@pytest.mark.long
@pytest.mark.usefixtures("own_server")
def test_in_chaos_every_feature_ends_with_a_label_or_a_reason(asking: Any) -> None:
    with serve(chaos, keeps_requests=False) as fake:
        run, config = asking(fake, N_FEATURES, timeout_seconds=2)
        finished = command("explain", run, "--config", config, key=KEY)
        assert finished.returncode == 3, finished.stderr
        assert fake.sent_after_reply == []
        assert fake.counts["hang"] > 10
        assert fake.counts["drop"] > 10
        assert_the_ledger_is_the_servers(run, fake)
        n_asked = fake.n_asked
        again = command("explain", run, key=KEY)
        assert again.returncode == 0, again.stderr
        assert "nothing to do" in again.stderr
        assert fake.n_asked == n_asked

    labels = rows(run, "SELECT status, text, reason FROM labels WHERE explainer = 'highlighted'")
    assert len(labels) == N_FEATURES
    done = [text for status, text, reason in labels if status == "done"]
    failed = Counter(reason for status, _, reason in labels if status == "failed")
    assert all(text.startswith("words of ") for text in done)
    assert len(done) + failed.total() == N_FEATURES
    assert None not in failed
    assert failed[DECLINED] > 5
    assert failed[NEVER_ACTIVE] < 300
    assert len(done) > 0.8 * N_FEATURES
    # What was counted on the terminal is what is stored.
    said = sum(
        int(line.split()[1].replace(",", ""))
        for line in finished.stderr.splitlines()
        if " failed: " in line
    )
    assert said == failed.total() - failed[NEVER_ACTIVE]

    # Labels derived again from the record are the same, failures too.
    for (label_id,) in rows(
        run,
        "SELECT min(label_id) FROM labels WHERE explainer = 'highlighted' GROUP BY reason",
    ):
        replayed = command("replay", run, label_id)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr

    for output in (finished.stdout, finished.stderr, again.stderr):
        assert KEY not in output
    assert files_with_the_key(run) == []


@pytest.mark.usefixtures("own_server")
def test_what_is_killed_is_asked_again_only_if_it_was_in_flight(asking: Any) -> None:
    draw = random.Random(4)

    def slow(asked: Asked) -> Answer:
        return replace(label_reply(asked), after_seconds=0.05)

    with serve(slow, keeps_requests=False) as fake:
        run, config = asking(fake, features=800, concurrency=16)
        in_flight = 0
        for _ in range(3):
            n_before = fake.n_asked
            process = subprocess.Popen(
                words_of("explain", run, "--config", config),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(KEY),
            )
            wanted = n_before + draw.randrange(20, 120)
            while fake.n_asked < wanted and process.poll() is None:
                time.sleep(0.002)
            assert process.poll() is None, "it was to be killed at work"
            process.kill()
            # At the moment of the kill at most so many; by now some have been answered.
            in_flight += 16
            process.wait()
            assert list((run / "journal").iterdir())
            assert files_with_the_key(run) == []
        finished = command("explain", run, key=KEY)
        assert finished.returncode == 0, finished.stderr
        assert len(fake.sent_after_reply) <= in_flight
    ((n, n_done),) = rows(
        run,
        "SELECT count(*), count(text) FROM labels WHERE explainer = 'highlighted' "
        f"AND reason IS DISTINCT FROM '{NEVER_ACTIVE}'",
    )
    assert n == n_done > 700
    ((n_calls, n_distinct),) = rows(
        run, f"SELECT count(*), count(DISTINCT request_hash) FROM {ALL_CALLS}"
    )
    assert n_calls == n_distinct, "a reply that was journalled was asked for again"
    # Features that are shown alike share a request.
    ((n_requests,),) = rows(run, "SELECT count(DISTINCT request_hash) FROM labels")
    assert n_distinct == n_requests > 0.9 * n_done


def test_a_budget_is_kept_and_the_rest_can_be_had_for_more(asking: Any) -> None:
    with serve(label_reply) as fake:
        run, config = asking(fake, features=300)
        nothing = command("explain", run, "--config", config, "--budget-usd", "0", key=KEY)
        assert nothing.returncode == 1, nothing.stderr
        assert fake.n_asked == 0
        stopped = command("explain", run, "--config", config, "--budget-usd", "0.02", key=KEY)
        assert stopped.returncode == 1, stopped.stderr
        assert "The budget does not cover the next call." in stopped.stderr
        assert "--budget-usd" in stopped.stderr
        ((usd, n_calls),) = rows(run, f"SELECT sum(usd), count(*) FROM {ALL_CALLS}")
        assert 0.01 < usd <= Decimal("0.02")
        assert 0 < n_calls < 300
        ((n_labels,),) = rows(run, "SELECT count(text) FROM labels WHERE model IS NOT NULL")
        assert n_labels == n_calls

        status = json.loads(command("status", run, "--json").stdout)
        assert status["spent"][0]["usd"] == str(usd)

        finished = command("explain", run, "--budget-usd", "9", key=KEY)
        assert finished.returncode == 0, finished.stderr
        assert fake.sent_after_reply == []
        assert_the_ledger_is_the_servers(run, fake)


def test_an_endpoint_with_little_is_asked_for_less_and_that_is_said(asking: Any) -> None:
    longest = 9000

    def with_little(asked: Asked) -> Answer:
        if (asked.body.get("response_format") or {}).get("type") == "json_schema":
            return error(400, "response_format json_schema is not supported")
        if sum(len(message["content"]) for message in asked.body["messages"]) > longest:
            return error(400, "This model's maximum context length", code="context_length_exceeded")
        return label_reply(asked)

    with serve(with_little) as fake:
        run, config = asking(fake, features=60)
        finished = command("explain", run, "--config", config, key=KEY)
        assert finished.returncode == 0, finished.stderr
        assert "the endpoint has no json_schema: " in finished.stderr
    shown = rows(
        run,
        "SELECT l.n_dropped_contexts, count(c.window_id), any_value(l.label_id) FROM labels l "
        "JOIN label_contexts c USING (label_id) WHERE l.explainer = 'highlighted' "
        "GROUP BY l.n_dropped_contexts, l.label_id ORDER BY 1 DESC",
    )
    assert len(shown) > 40
    dropped, kept, label_id = shown[0]
    assert dropped > 0 < kept
    assert command("replay", run, label_id).returncode == 0


def test_an_estimate_counts_the_calls_that_are_made(asking: Any) -> None:
    with serve(label_reply) as fake:
        run, config = asking(fake, features=90)
        estimated = command("estimate", config, "--out", run, "--json")
        assert estimated.returncode == 0, estimated.stderr
        assert fake.n_asked == 0
        estimate = json.loads(estimated.stdout)
        finished = command("explain", run, "--config", config, key=KEY)
        assert finished.returncode == 0, finished.stderr
        assert fake.n_asked == estimate["n_calls"]
        # The server counts a token for each four characters; the estimate is rather high.
        ratio = estimate["explainers"][0]["prompt_tokens"] / fake.tokens["prompt"]
        assert 0.8 < ratio < 2.5
        assert Decimal(estimate["usd"]) > 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(401, "Incorrect API key", code="invalid_api_key"), "the endpoint refuses the key"),
        (error(404, "no such model", code="model_not_found"), "does not know this model"),
    ],
)
def test_an_endpoint_that_refuses_everything_stops_the_run_at_once(
    asking: Any, answer: Answer, message: str
) -> None:
    with serve(lambda asked: answer) as fake:
        run, config = asking(fake, features=300, concurrency=8)
        stopped = command("explain", run, "--config", config, key=KEY)
        assert stopped.returncode == 2, stopped.stderr
        assert message in stopped.stderr
        assert fake.n_asked <= 8
        assert rows(run, "SELECT count(*) FROM labels WHERE reason LIKE 'no reply%'") == [(0,)]


AGREE_AND_RUN = """
import sys
from pathlib import Path

import typer
from scopenote.flows.config import load_config
from scopenote.flows.model_commands import agree_on_cost
from scopenote.flows.stage_commands import run_whole_job
from scopenote.flows.terminal import answer

app = typer.Typer(pretty_exceptions_enable=False)

@app.command()
def demo(run: Path, config: Path, yes: bool = False) -> None:
    settings = load_config(config)
    agree_on_cost("demo", run, settings, ["demo"], False, yes)
    run_whole_job("demo", run, settings, ["demo"], False)

sys.exit(answer(app))
"""


@pytest.mark.usefixtures("own_server")
@pytest.mark.long
def test_the_demo_asks_only_who_has_agreed_to_the_cost(asking: Any) -> None:
    with serve(label_reply) as fake:
        run, config = asking(fake, features=9)
        words = [sys.executable, "-c", AGREE_AND_RUN, str(run), str(config)]

        def demo(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*words, *more], capture_output=True, text=True, timeout=300, env=environment(KEY)
            )

        unsaid = demo()
        assert unsaid.returncode == 2, unsaid.stderr
        assert "9 calls" in unsaid.stdout
        assert "add `--yes`" in unsaid.stderr
        assert fake.n_asked == 0
        agreed = demo("--yes")
        assert agreed.returncode == 0, agreed.stderr
        assert fake.n_asked == 9
        assert "Some labels by gpt-4o-mini" in agreed.stdout
        again = demo("--yes")
        assert "explain: nothing to do" in again.stderr
        assert fake.n_asked == 9
