"""What a batch's results come to: calls on record, requests for a later batch, or a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.label.batch_results import MOST_ROUNDS, BatchResults, Leftover
from scopenote.label.call_records import CallRecords, reason_of, to_record
from scopenote.label.chat import ChatRequest, Message
from scopenote.label.endpoint_client import HOPELESS
from scopenote.label.pricing import Price
from scopenote.label.recorded_client import Tally
from scopenote.store.calls import absorb_journals, find_calls, spent
from scopenote.store.database import open_store, open_work, publish
from scopenote.store.journal import Journal
from scopenote.store.known_calls import KnownCalls
from scopenote.store.records import Call
from scopenote.store.request_files import RequestFile, RequestIndex

from .fake_openai import Answer, completion, error, refusal, reply

PRICE = Price(Decimal(100), Decimal(50), Decimal(1000), Decimal("0.5"), "2026-11")
RECORDS = CallRecords({"fake": PRICE}, "explain", in_batch=True)
COST = Decimal("0.0065") / 2  # 10 tokens at 100, 10 at 50, 5 at 1000 a million; half in a batch


def request(number: int) -> ChatRequest:
    messages = (Message("system", "Be brief."), Message("user", f"feature {number}"))
    return ChatRequest(messages, "fake", 0.0, 50, reply_schema={"type": "object"})


def name(number: int) -> str:
    return request(number).request_hash


def line(number: int, answer: Answer | str) -> bytes:
    result: dict[str, Any] = {"id": "r", "custom_id": name(number), "response": None, "error": None}
    if isinstance(answer, str):
        result["error"] = {"code": answer, "message": "no turn"}
    else:
        result["response"] = {"status_code": answer.status, "body": json.loads(answer.body)}
    return json.dumps(result).encode() + b"\n"


def good(number: int) -> bytes:
    return line(number, reply(f"reply {number}", 20, 10, 5))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its databases and no calls, to be copied."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "journal").mkdir()
    with open_work(folder) as work:
        publish(work, folder)
    return folder


@pytest.fixture
def folder(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(empty, tmp_path / "run"))


@dataclass
class Run:
    """A run with one batch of so many requests, whose results are read as often as one likes."""

    folder: Path
    n: int
    rounds: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    n_readings: int = 0

    def __post_init__(self) -> None:
        with RequestFile(self.folder / "requests") as file:
            for number in range(self.n):
                file.add(to_record(request(number), 1))

    def read(
        self, *files: Sequence[bytes], was_tried: bool = True, dies: bool = False
    ) -> Leftover | None:
        if self.n_readings:
            with self.absorbed() as work:
                publish(work, self.folder)
        self.n_readings += 1
        with (
            open_store(self.folder) as store,
            Journal(self.folder / "journal") as journal,
            RequestIndex(self.folder / "requests") as requests,
        ):
            known = KnownCalls(store, self.folder / "journal")
            results = BatchResults(
                requests, RECORDS, known, journal, self.tally, self.rounds, self.lacking, 3600.0,
                "batch b",
            )  # fmt: skip
            for number, lines in enumerate(files):
                file = self.folder / f"results-{number}"
                file.write_bytes(b"".join(lines))
                results.read(file)
            return None if dies else results.settle("the batch expired", was_tried)

    @contextmanager
    def absorbed(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with open_work(self.folder) as work:
            absorb_journals(work, self.folder / "journal")
            yield work

    def calls(self) -> dict[int, Call]:
        with self.absorbed() as work:
            found = find_calls(work, [name(number) for number in range(self.n)])
        return {number: found[name(number)] for number in range(self.n) if name(number) in found}

    def paid(self) -> tuple[int, Decimal | None]:
        with self.absorbed() as work:
            (all_calls,) = spent(work)
        return all_calls.n_calls, all_calls.usd


def test_replies_become_calls_at_the_price_of_a_batch(folder: Path) -> None:
    run = Run(folder, 3)
    assert run.read([good(2), good(0)], [line(1, refusal())]) == Leftover()
    calls = run.calls()
    assert calls[0].reply["text"] == "reply 0"
    assert (calls[0].usd, calls[0].seconds, calls[0].attempts) == (COST, 3600.0, 1)
    assert calls[0].request == request(0).as_dict()
    assert calls[1].reply["refusal"] == "I cannot."
    assert run.paid()[0] == run.tally.n_calls == 3


def test_reading_again_adds_nothing(folder: Path) -> None:
    run = Run(folder, 6, rounds={name(5): MOST_ROUNDS - 1})
    bad = line(3, error(400, "no such parameter"))
    # Killed in the middle, then at the end, then done.
    lines = [good(0), good(1), bad, line(4, "batch_expired"), line(5, "batch_expired")]
    run.read(lines[:2], dies=True)
    for _ in range(2):
        assert run.read(lines) == Leftover({name(2), name(4)})
    assert sorted(run.calls()) == [0, 1, 3, 5]
    assert run.paid()[0] == 4
    assert run.tally.n_calls == 4


def test_a_request_without_an_answer_is_left_for_later_batches_and_in_the_end_fails(
    empty: Path, tmp_path: Path
) -> None:
    answers: dict[int, Answer | str] = {1: "batch_expired", 2: error(500, "hiccup")}
    for n_before in range(MOST_ROUNDS):
        folder = Path(shutil.copytree(empty, tmp_path / str(n_before)))
        run = Run(folder, 4, {name(number): n_before for number in range(1, 4)})
        leftover = run.read([good(0)], [line(*each) for each in answers.items()])
        if n_before + 1 < MOST_ROUNDS:
            assert leftover == Leftover({name(1), name(2), name(3)})
            assert sorted(run.calls()) == [0]
    assert leftover == Leftover()
    errors = {number: call.error for number, call in run.calls().items()}
    assert errors == {
        0: None,
        1: "unanswered: unanswered: batch_expired: no turn, in 3 batches",
        2: "server_error: server error (HTTP 500): hiccup, in 3 batches",
        3: "unanswered: unanswered: the batch expired, in 3 batches",
    }
    assert run.calls()[1].attempts == MOST_ROUNDS
    assert run.paid() == (4, COST)


@pytest.mark.parametrize(
    ("answer", "reason", "usd"),
    [
        (error(400, "This model's maximum context length is 9"), "context_too_long", None),
        (error(400, "max_tokens is too large"), "bad_request", None),
        (completion([], 20, 10, 5), "no_choices", COST),
    ],
)
def test_what_would_come_again_is_a_failure_at_once(
    folder: Path, answer: Answer, reason: str, usd: Decimal | None
) -> None:
    run = Run(folder, 2)
    assert run.read([good(0), line(1, answer)]) == Leftover()
    failure = run.calls()[1]
    assert (reason_of(failure), failure.usd, failure.reply) == (reason, usd, None)


def test_a_batch_that_failed_as_a_whole_has_tried_nothing(folder: Path) -> None:
    run = Run(folder, 2)
    assert run.read(was_tried=False) == Leftover(not_counted={name(0), name(1)})
    assert run.calls() == {}


def test_lines_that_are_damaged_double_or_another_batchs_change_nothing(folder: Path) -> None:
    run = Run(folder, 3)
    strange = [good(7), b"\n", good(0)[:40] + b"\n", b"<html>\n", good(1), line(1, error(500))]
    assert run.read([*strange, good(1)]) == Leftover({name(0), name(2)})
    assert sorted(run.calls()) == [1]
    assert run.paid() == (1, COST)


def test_what_the_endpoint_lacks_is_noted_and_counts_for_no_round(folder: Path) -> None:
    said = "response_format of type json_schema is not supported"
    run = Run(folder, 30, lacking={"logprobs": "no logprobs"})
    leftover = run.read([line(number, error(400, said)) for number in range(30)])
    assert leftover == Leftover(
        not_counted={name(number) for number in range(30)},
        lacking={"logprobs": "no logprobs", "json_schema": said},
    )
    assert run.calls() == {}
    # Where it was asked without, the same words are about something else.
    run.lacking |= {"json_schema": said, "json_object": said}
    again = run.read([good(0), line(1, error(400, said))])
    assert again is not None
    assert again.unanswered == {name(number) for number in range(2, 30)}
    assert reason_of(run.calls()[1]) == "bad_request"


def test_a_refusal_of_all_stops_and_counts_for_no_round(folder: Path) -> None:
    run = Run(folder, 3)
    no_credit = error(429, "You exceeded your quota", code="insufficient_quota")
    leftover = run.read([good(0)], [line(1, no_credit), line(2, no_credit)])
    assert leftover is not None
    assert leftover.not_counted == {name(1), name(2)}
    assert leftover.refusal is not None
    assert "no more credit" in leftover.refusal.what
    assert sorted(run.calls()) == [0]


@pytest.mark.parametrize(
    ("n_errors", "n_good", "stops"),
    [(HOPELESS, 0, True), (HOPELESS - 1, 0, False), (HOPELESS, 1, False)],
)
@pytest.mark.parametrize("answer", [error(400, "use max_completion_tokens"), error(500)])
def test_a_batch_without_a_single_reply_stops_instead_of_storing_failures(
    folder: Path, n_errors: int, n_good: int, stops: bool, answer: Answer
) -> None:
    run = Run(folder, n_errors + n_good, {name(number): 2 for number in range(n_errors)})
    lines = [line(number, answer) for number in range(n_errors)]
    leftover = run.read([*lines, *(good(number) for number in range(n_errors, run.n))])
    assert leftover is not None
    assert (leftover.refusal is not None) == stops
    assert len(leftover.not_counted) == (n_errors if stops else 0)
    assert len(run.calls()) == (0 if stops else run.n)
