"""Every call is on the record before its reply is used, is paid once, and keeps to the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from scopenote.flows.event_loop import EventLoopThread
from scopenote.label.budget import Allowance, Budget
from scopenote.label.call_records import CallRecords, reason_of, to_record
from scopenote.label.chat import ChatReply, ChatRequest, Message
from scopenote.label.pricing import Price
from scopenote.label.recorded_client import RecordedClient, RecordReader
from scopenote.store.calls import absorb_journals
from scopenote.store.database import open_store, open_work, publish
from scopenote.store.errors import (
    AllowanceSpent,
    BudgetSpent,
    EndpointRefuses,
    NotYetAnswered,
    RequestGivenUp,
    StoreError,
)
from scopenote.store.journal import Journal
from scopenote.store.journalled_calls import JournalledCalls
from scopenote.store.known_calls import KnownCalls
from scopenote.store.records import Call
from scopenote.store.request_files import RequestFile, read_requests

PRICE = Price(Decimal(100), Decimal(50), Decimal(1000), Decimal("0.5"), "2026-11")
PRICES = {"fake": PRICE}


def request(text: str, draw: int = 0) -> ChatRequest:
    messages = (Message("system", "Be brief."), Message("user", text))
    return ChatRequest(messages, "fake", 0.0, 50, draw=draw)


class Client:
    """Replies with what it was asked; counts, and knows what was on disk when it replied."""

    def __init__(self, journal: Path, error: Exception | None = None) -> None:
        self.journal = journal
        self.error = error
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request.messages[-1].content)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        text = f"reply to {request.messages[-1].content}"
        return ChatReply(text, "stop", None, None, 20, 10, 5, "fake-1", 0.25, 2)


@contextmanager
def recorded(
    folder: Path,
    error: Exception | None = None,
    budget: Budget | None = None,
    in_batches: Container[str] = (),
    **known: bool,
) -> Iterator[tuple[RecordedClient, Client]]:
    """As in a run: what others left in the journal is absorbed and published first."""
    (folder / "journal").mkdir(exist_ok=True)
    with open_work(folder) as work:
        absorb_journals(work, folder / "journal")
        publish(work, folder)
    client = Client(folder / "journal", error)
    with open_store(folder) as store, Journal(folder / "journal") as journal:
        calls = KnownCalls(store, folder / "journal", **known)
        records = CallRecords(PRICES, "explain")
        yield RecordedClient(client, calls, journal, records, budget, in_batches), client


def ask(client: RecordedClient, *texts: str) -> list[Call | BaseException]:
    async def all_at_once() -> list[Call | BaseException]:
        asked = (client.ask(request(text), 1) for text in texts)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_at_once())


def test_a_reply_is_in_the_journal_before_it_is_used(tmp_path: Path) -> None:
    with recorded(tmp_path) as (client, _):
        (call,) = ask(client, "one")
        with JournalledCalls(tmp_path / "journal") as journalled:
            assert journalled.find(request("one").request_hash) == call
    assert isinstance(call, Call)
    assert call.reply["text"] == "reply to one"
    assert (call.prompt_tokens, call.cached_tokens, call.completion_tokens) == (20, 10, 5)
    assert call.usd == Decimal("0.0065")  # 10 at 100, 10 at 50, 5 at 1000 a million
    assert (call.seconds, call.attempts, call.purpose, call.error) == (0.25, 2, "explain", None)
    assert [message["content"] for message in call.request["messages"]] == ["Be brief.", "one"]
    assert (client.tally.n_calls, client.tally.usd) == (1, call.usd)


def test_what_was_answered_before_is_not_sent_again(tmp_path: Path) -> None:
    with recorded(tmp_path) as (client, _):
        before = ask(client, "one", "two")
    with recorded(tmp_path) as (client, endpoint):
        after = ask(client, "one", "two", "three")
    assert endpoint.asked == ["three"]
    assert after[:2] == before
    assert (client.tally.n_calls, client.tally.n_known) == (1, 2)


def test_the_same_request_is_sent_once_also_at_once_and_later(tmp_path: Path) -> None:
    with recorded(tmp_path) as (client, endpoint):
        calls = ask(client, "one", "one", "one") + ask(client, "one")
    assert endpoint.asked == ["one"]
    assert calls[1:] == calls[:1] * 3


def test_another_draw_is_another_request(tmp_path: Path) -> None:
    with recorded(tmp_path) as (client, endpoint):
        for draw in range(3):
            asyncio.run(client.ask(request("one", draw), 1))
    assert len(endpoint.asked) == 3


def test_a_request_that_was_given_up_on_is_on_record_with_its_reason(tmp_path: Path) -> None:
    error = RequestGivenUp(
        "no usable reply", found="rate limited (HTTP 429): slow down", reason="rate_limited",
        attempts=8, seconds=12.5, prompt_tokens=7, completion_tokens=3,
    )  # fmt: skip
    with recorded(tmp_path, error) as (client, _):
        (call,) = ask(client, "one")
    assert isinstance(call, Call)
    assert reason_of(call) == "rate_limited"
    assert call.reply is None
    assert call.error == "rate_limited: rate limited (HTTP 429): slow down"
    assert (call.attempts, call.seconds, call.usd) == (8, 12.5, Decimal("0.0037"))
    with recorded(tmp_path) as (client, endpoint):
        assert ask(client, "one") == [call]
        assert endpoint.asked == []
    with recorded(tmp_path, replies_only=True) as (client, endpoint):
        (again,) = ask(client, "one")
        assert reason_of(again) is None
        assert endpoint.asked == ["one"]


def test_what_the_endpoint_refuses_is_no_call(tmp_path: Path) -> None:
    budget = Budget(Decimal(1), ["fake"], PRICES)
    with recorded(tmp_path, EndpointRefuses("wrong key"), budget) as (client, _):
        assert isinstance(ask(client, "one")[0], EndpointRefuses)
        assert client.tally.n_calls == 0
    assert budget.spent_usd == 0
    assert list((tmp_path / "journal").iterdir()) == []


def most_usd(text: str) -> Decimal:
    return PRICE.most(len("Be brief." + text) + 32, 50)


@pytest.mark.parametrize("n_paid", [0, 1, 3])
def test_no_call_is_made_that_might_exceed_the_budget(tmp_path: Path, n_paid: int) -> None:
    texts = [f"text {n}" for n in range(6)]
    cost = PRICE.cost(20, 10, 5)
    # The last of these may just be made: those before it cost less than they might have.
    limit = max(n_paid - 1, 0) * cost + (most_usd(texts[0]) if n_paid else Decimal(0))
    budget = Budget(limit, ["fake"], PRICES)
    with recorded(tmp_path, budget=budget) as (client, endpoint):
        outcomes = ask(client, *texts)
        assert len(endpoint.asked) == n_paid
        assert endpoint.most_at_once <= 1
    assert sum(isinstance(each, Call) for each in outcomes) == n_paid
    assert sum(isinstance(each, BudgetSpent) for each in outcomes) == len(texts) - n_paid
    assert budget.spent_usd == n_paid * cost <= limit
    # What was paid for is there when there is more money.
    with recorded(tmp_path, budget=Budget(Decimal(10), ["fake"], PRICES, limit)) as (client, rest):
        assert all(isinstance(each, Call) for each in ask(client, *texts))
        assert len(rest.asked) == len(texts) - n_paid


def test_a_reply_that_the_disk_does_not_take_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(tmp_path) as (client, _):

        def full(call: Call) -> None:
            raise StoreError("The disk is full.")

        monkeypatch.setattr(client.journal, "append", full)
        assert isinstance(ask(client, "one")[0], StoreError)
        assert client.tally.n_calls == 0
        assert request("one").request_hash not in client.known


def test_a_request_that_is_in_a_batch_is_not_sent(tmp_path: Path) -> None:
    budget = Budget(Decimal(1), ["fake"], PRICES)
    in_batches = {request("one").request_hash}
    with recorded(tmp_path, budget=budget, in_batches=in_batches) as (client, endpoint):
        in_batch, other = ask(client, "one", "two")
        assert isinstance(in_batch, NotYetAnswered)
        assert isinstance(other, Call)
        assert endpoint.asked == ["two"]


def test_a_reader_of_the_record_asks_nobody_and_notes_what_is_wanted(tmp_path: Path) -> None:
    with recorded(tmp_path) as (client, _):
        known = ask(client, "known")
    with recorded(tmp_path) as (client, _), RequestFile(tmp_path / "wanted") as wanted:
        reader = RecordReader(client.known, {request("in batch").request_hash}, wanted)

        async def all_at_once() -> list[Call | BaseException]:
            texts = ("known", "in batch", "new", "newer", "new")
            asked = (reader.ask(request(text), 1) for text in texts)
            return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(all_at_once())
    assert answers[:1] == known
    assert all(isinstance(answer, NotYetAnswered) for answer in answers[1:])
    expected = [to_record(request(text), 1) for text in ("new", "newer")]
    assert list(read_requests(tmp_path / "wanted")) == expected


def test_calls_under_way_when_one_is_refused_are_waited_for_and_counted(tmp_path: Path) -> None:
    async def ask_all(client: RecordedClient) -> None:
        await asyncio.gather(*(client.ask(request(str(n)), 1) for n in range(12)))

    with recorded(tmp_path) as (client, server), EventLoopThread() as loop:
        client.allowance = Allowance(calls=10)
        with pytest.raises(AllowanceSpent):
            loop.submit(ask_all(client)).result()
        client.wait_for_calls()
        assert (client.tally.n_calls, len(server.asked)) == (10, 10)
