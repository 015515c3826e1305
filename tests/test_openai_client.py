"""The client of OpenAI-compatible endpoints, over real HTTP, against one that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scopenote.label.call_limits import CallLimits
from scopenote.label.chat import ChatReply, ChatRequest, Message, TokenLogprob
from scopenote.label.endpoint_client import HOPELESS, Patience
from scopenote.label.openai_client import OpenAIClient
from scopenote.store.errors import ConfigurationError, EndpointRefuses, RequestGivenUp

from .fake_openai import (
    DROP,
    DROP_HALFWAY,
    HANG,
    Answer,
    Asked,
    FakeOpenAI,
    completion,
    error,
    html,
    in_turn,
    not_json,
    refusal,
    reply,
    serve,
    too_many,
)

KEY = "sk-test-0123456789abcdef"
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}}
QUICK = Patience(
    attempts=3,
    attempt_seconds=5,
    total_seconds=20,
    first_backoff_seconds=0.002,
    longest_backoff_seconds=0.01,
)
Outcome = ChatReply | RequestGivenUp | EndpointRefuses


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # No certificates: reading the system's takes longer than most of these tests.
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


def request(text: str = "Hello", **more: Any) -> ChatRequest:
    messages = (Message("system", "Be brief."), Message("user", text))
    return ChatRequest(messages, "fake-model", 0.0, 20, **more)


async def outcome_of(client: OpenAIClient, asked: ChatRequest) -> Outcome:
    try:
        return await client.complete(asked)
    except (RequestGivenUp, EndpointRefuses) as failure:
        return failure


async def ask_all(
    base_url: str, requests: list[ChatRequest], patience: Patience, concurrency: int
) -> tuple[list[Outcome], OpenAIClient]:
    limits = CallLimits(concurrency)
    async with OpenAIClient(base_url, limits, patience) as client:
        if concurrency == 1:
            return [await outcome_of(client, one) for one in requests], client
        return await asyncio.gather(*(outcome_of(client, one) for one in requests)), client


def ask(
    fake: FakeOpenAI, *requests: ChatRequest, patience: Patience = QUICK, concurrency: int = 1
) -> list[Outcome]:
    requests = requests or (request(),)
    return asyncio.run(ask_all(fake.base_url, list(requests), patience, concurrency))[0]


def ask_one(fake: FakeOpenAI, asked: ChatRequest | None = None, **more: Any) -> Outcome:
    (outcome,) = ask(fake, asked or request(), **more)
    return outcome


def test_a_request_is_sent_as_it_is_and_its_reply_comes_back_whole() -> None:
    alternatives = [{"token": "fine", "logprob": -0.1}, {"token": "bad", "logprob": -2.5}]
    token = {"token": "fine", "logprob": -0.1, "bytes": [1], "top_logprobs": alternatives}
    answer = reply("fine", 11, 4, 1, logprobs={"content": [token], "refusal": None})
    with serve(in_turn(answer)) as fake:
        got = ask_one(fake, request(reply_schema=SCHEMA, top_logprobs=2, draw=3))
    assert isinstance(got, ChatReply)
    both = (("fine", -0.1), ("bad", -2.5))
    assert 0 < got.seconds < 5
    assert replace(got, seconds=0) == ChatReply(
        "fine", "stop", None, (TokenLogprob("fine", -0.1, both),), 11, 4, 1,
        "fake-model-2026-11-01", 0, 1,
    )  # fmt: skip
    (asked,) = fake.asked
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "fake-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
        "temperature": 0.0,
        "max_tokens": 20,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA},
        },
    }


def test_what_is_not_asked_for_is_not_sent() -> None:
    with serve(in_turn(reply())) as fake:
        ask_one(fake)
    assert set(fake.asked[0].body) == {"model", "messages", "temperature", "max_tokens"}


@pytest.mark.parametrize(
    ("answer", "text", "refused"), [(reply(None), None, None), (reply(""), "", None),
                                    (refusal(), None, "I cannot.")]
)  # fmt: skip
def test_a_reply_without_text_and_a_refusal_are_replies(
    answer: Answer, text: str | None, refused: str | None
) -> None:
    with serve(in_turn(answer)) as fake:
        got = ask_one(fake)
    assert isinstance(got, ChatReply)
    assert (got.text, got.refusal, got.prompt_tokens) == (text, refused, 7)
    assert len(fake.asked) == 1


PASSING = [
    (too_many(), "rate_limited"),
    (error(408), "server_error"),
    (error(409), "server_error"),
    (error(500), "server_error"),
    (html(503), "server_error"),
    (html(), "web_page"),
    (not_json(), "not_json"),
    (DROP, "connection"),
    (DROP_HALFWAY, "connection"),
    (HANG, "timeout"),
    (replace(reply(), kind="drip", then="drip"), "timeout"),
]


@pytest.mark.parametrize(
    ("answer", "reason"), PASSING, ids=[f"{answer.kind} {why}" for answer, why in PASSING]
)
def test_what_may_pass_is_sent_again_until_patience_ends(answer: Answer, reason: str) -> None:
    patience = replace(QUICK, attempts=2, attempt_seconds=0.2) if reason == "timeout" else QUICK
    n = patience.attempts
    with serve(in_turn(answer, reply(), *[answer] * n, reply())) as fake:
        got, failed, last = ask(fake, request("a"), request("b"), request("c"), patience=patience)
    assert isinstance(got, ChatReply)
    assert got.attempts == 2
    assert isinstance(failed, RequestGivenUp)
    assert (failed.reason, failed.attempts) == (reason, n)
    assert failed.prompt_tokens is None
    assert failed.found and failed.found.endswith(f"after {n} attempts")
    assert isinstance(last, ChatReply)
    assert [asked.text for asked in fake.asked] == ["a", "a", *["b"] * n, "c"]


@pytest.mark.parametrize(
    ("answer", "reason", "charged"),
    [
        (error(400, "no such value"), "bad_request", (None, None, None)),
        (error(422), "bad_request", (None, None, None)),
        (error(400, "no", code="context_length_exceeded"), "context_too_long", (None, None, None)),
        (replace(reply(), body=b"[]"), "unreadable", (None, None, None)),
        (completion([], 9, 8, 1), "no_choices", (9, 8, 1)),
    ],
    ids=lambda value: value.kind if isinstance(value, Answer) else "",
)
def test_what_would_come_again_is_not_sent_again(
    answer: Answer, reason: str, charged: tuple[int | None, ...]
) -> None:
    with serve(in_turn(answer)) as fake:
        failed = ask_one(fake)
    assert isinstance(failed, RequestGivenUp)
    assert (failed.reason, failed.attempts, len(fake.asked)) == (reason, 1, 1)
    assert (failed.prompt_tokens, failed.cached_tokens, failed.completion_tokens) == charged


def test_an_endpoint_is_left_alone_for_as_long_as_it_asks() -> None:
    with serve(in_turn(too_many("0.1"), error(503, headers={"Retry-After": "0.1"}), reply())) as f:
        got = ask_one(f)
    assert isinstance(got, ChatReply)
    assert 0.2 <= got.seconds < 1


def test_a_request_is_given_up_on_at_once_where_the_endpoint_asks_for_more_than_patience() -> None:
    with serve(in_turn(too_many("60"))) as fake:
        failed = ask_one(fake)
    assert isinstance(failed, RequestGivenUp)
    assert (failed.reason, failed.attempts) == ("rate_limited", 1)


def test_all_attempts_together_have_their_time() -> None:
    patience = replace(QUICK, attempts=1000, attempt_seconds=0.1, total_seconds=0.25)
    with serve(in_turn(HANG)) as fake:
        failed = ask_one(fake, patience=patience)
    assert isinstance(failed, RequestGivenUp)
    assert failed.attempts in (2, 3)
    assert 0.2 <= failed.seconds < 1


def test_an_endpoint_that_is_not_there_is_a_broken_connection() -> None:
    with serve(in_turn(reply())) as fake:
        pass
    failed = ask_one(fake)
    assert isinstance(failed, RequestGivenUp)
    assert (failed.reason, failed.attempts) == ("connection", 3)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (error(401, code="invalid_api_key"), "the endpoint refuses the key"),
        (error(403), "the endpoint refuses the key"),
        (error(429, code="insufficient_quota"), "the endpoint gives no more credit"),
        (error(402), "the endpoint gives no more credit"),
        (error(404, code="model_not_found"), "the endpoint does not know this model"),
        (html(404), "the endpoint does not know this model"),
        (replace(reply(), body=b'{"error": {"code": 401, "message": "no"}}'), "refuses the key"),
    ],
    ids=lambda value: value.kind if isinstance(value, Answer) else "",
)
def test_an_endpoint_that_refuses_everything_is_asked_no_more(answer: Answer, what: str) -> None:
    answer = replace(answer, after_seconds=0.01)
    with serve(in_turn(answer)) as fake:
        outcomes = ask(fake, *(request(str(n)) for n in range(40)), concurrency=4)
    assert all(isinstance(outcome, EndpointRefuses) for outcome in outcomes)
    assert all(what in str(outcome) and fake.base_url in str(outcome) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 40
    assert 1 <= len(fake.asked) <= 4  # those in flight together


def test_who_waits_for_a_refusing_endpoint_does_not_wait_out_the_minute() -> None:
    async def run() -> list[Outcome]:
        limits = CallLimits(1, requests_per_minute=61)
        async with OpenAIClient(fake.base_url, limits, QUICK) as client:
            requests = (request(str(n)) for n in range(20))
            everything = asyncio.gather(*(outcome_of(client, one) for one in requests))
            return await asyncio.wait_for(everything, 5)

    with serve(in_turn(error(401))) as fake:
        assert {type(outcome) for outcome in asyncio.run(run())} == {EndpointRefuses}


def test_an_endpoint_that_never_has_a_usable_reply_is_given_up_on() -> None:
    with serve(in_turn(*[error(400)] * (HOPELESS - 1), reply(), error(400))) as fake:
        outcomes = ask(fake, *(request(str(n)) for n in range(2 * HOPELESS + 5)))
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [
        *[RequestGivenUp] * (HOPELESS - 1),
        ChatReply,
        *[RequestGivenUp] * HOPELESS,
        *[EndpointRefuses] * 5,
    ]
    assert len(fake.asked) == 2 * HOPELESS


def test_prompts_that_are_too_long_say_nothing_about_the_endpoint() -> None:
    too_long = error(400, code="context_length_exceeded")
    with serve(in_turn(too_long)) as fake:
        outcomes = ask(fake, *(request(str(n)) for n in range(HOPELESS + 5)))
    assert all(isinstance(outcome, RequestGivenUp) for outcome in outcomes)


def without(*lacking: str) -> Callable[[Asked], Answer]:
    """An endpoint that refuses these parameters, and these kinds of `response_format`."""

    def script(asked: Asked) -> Answer:
        form = asked.body.get("response_format", {}).get("type")
        if form in lacking:
            return error(400, f"'{form}' is not supported", param="response_format")
        if "logprobs" in asked.body and "logprobs" in lacking:
            return error(422, "This model does not support logprobs")
        return reply(form)

    return script


@pytest.mark.parametrize(
    ("lacking", "form"),
    [
        (("logprobs",), "json_schema"),
        (("json_schema",), "json_object"),
        (("json_schema", "json_object"), None),
        (("logprobs", "json_schema", "json_object"), None),
    ],
)
def test_what_an_endpoint_lacks_is_found_out_once_and_left_out_from_then_on(
    lacking: tuple[str, ...], form: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [request(str(n), reply_schema=SCHEMA, top_logprobs=5) for n in range(4)]
    with serve(without(*lacking)) as fake, caplog.at_level(logging.WARNING, "scopenote"):
        outcomes, client = asyncio.run(ask_all(fake.base_url, asked, QUICK, 1))
    assert all(isinstance(outcome, ChatReply) for outcome in outcomes)
    assert [outcome.text for outcome in outcomes] == [form] * 4
    assert [outcome.attempts for outcome in outcomes] == [1 + len(lacking), 1, 1, 1]
    assert len(fake.asked) == 4 + len(lacking)
    assert set(client.lacking) == set(lacking)
    assert all("support" in said for said in client.lacking.values())
    assert len([record for record in caplog.records if "has no" in record.message]) == len(lacking)
    assert ("logprobs" in fake.asked[-1].body) == ("logprobs" not in lacking)


def test_requests_in_flight_together_all_go_on_without_what_is_lacking() -> None:
    asked = [request(str(n), reply_schema=SCHEMA, top_logprobs=5) for n in range(30)]
    with serve(without("logprobs", "json_schema")) as fake:
        outcomes = ask(fake, *asked, concurrency=30)
    assert all(isinstance(outcome, ChatReply) for outcome in outcomes)
    assert sum(outcome.attempts for outcome in outcomes) == len(fake.asked)


def test_a_parameter_that_was_not_sent_cannot_be_left_out() -> None:
    with serve(in_turn(error(400, "logprobs and response_format are wrong"))) as fake:
        failed = ask_one(fake)
    assert isinstance(failed, RequestGivenUp)
    assert failed.attempts == 1


def test_no_more_calls_are_in_flight_than_allowed_and_fewer_after_too_many() -> None:
    answer = replace(reply(), after_seconds=0.1)
    with serve(in_turn(answer)) as fake:
        ask(fake, *(request(str(n)) for n in range(24)), concurrency=8)
    assert fake.most_at_once == 8

    async def run() -> int:
        limits = CallLimits(8)
        async with OpenAIClient(fake.base_url, limits, QUICK) as client:
            await client.complete(request())
        return limits.at_once

    with serve(in_turn(too_many(), too_many(), reply())) as fake:
        assert asyncio.run(run()) == 2


N_IN_CHAOS = 200
# Among the first, so that they hang side by side and the test need not wait for each.
HANGING = {5, 17, 29, 41}
FAILING = {7, 57, 107, 157}
CHAOS = [
    (0.10, too_many("0.01")),
    (0.05, error(500)),
    (0.015, DROP),
    (0.015, DROP_HALFWAY),
    (0.03, not_json()),
    (0.02, reply('{"label": "cut o')),
    (0.01, html()),
    (0.01, completion([])),
    (0.01, refusal()),
]


def chaos(asked: Asked) -> Answer:
    """The mixture out of which labels have to come, the same at every run."""
    n = int(asked.text)
    if n in FAILING:
        return error(500)
    if n in HANGING and not asked.times_before:
        return HANG
    drawn = random.Random(f"{n} {asked.times_before}").random()
    for share, answer in CHAOS:
        if drawn < share:
            return answer
        drawn -= share
    return replace(reply(f"reply {n}", n, n // 2, 3), after_seconds=0.002)


def test_in_chaos_every_request_ends_and_none_is_sent_after_its_reply() -> None:
    patience = replace(QUICK, attempts=8, attempt_seconds=1.5, total_seconds=30)
    with serve(chaos) as fake:
        requests = [request(str(n)) for n in range(N_IN_CHAOS)]
        outcomes = ask(fake, *requests, patience=patience, concurrency=64)
    replies = [outcome for outcome in outcomes if isinstance(outcome, ChatReply)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, RequestGivenUp)]
    assert len(replies) + len(failed) == N_IN_CHAOS
    empty = fake.counts["reply"] - len(replies)
    reasons = Counter(failure.reason for failure in failed)
    assert reasons == Counter({"server_error": len(FAILING), "no_choices": empty})
    assert fake.sent_after_reply == []
    assert fake.most_at_once <= 64
    # All that the server saw and charged for is in the outcomes.
    assert sum(outcome.attempts for outcome in outcomes) == len(fake.asked)
    assert sum(fake.counts.values()) == len(fake.asked)
    assert fake.tokens == Counter(
        prompt=sum(outcome.prompt_tokens or 0 for outcome in outcomes),
        cached=sum(outcome.cached_tokens or 0 for outcome in outcomes),
        written=sum(outcome.completion_tokens or 0 for outcome in outcomes),
    )
    # Nobody has another's reply.
    texts = {n: outcome.text for n, outcome in enumerate(outcomes) if outcome in replies}
    odd = {n: text for n, text in texts.items() if text != f"reply {n}"}
    assert set(odd.values()) == {None, '{"label": "cut o'}
    # Everything that can go wrong did.
    assert empty > 0
    assert fake.counts["hang"] == len(HANGING)
    assert fake.counts.keys() == {
        "error 429", "error 500", "drop", "hang", "not json", "html", "reply"
    }  # fmt: skip


def shown(error: BaseException | None) -> Iterator[str]:
    """All that is ever shown of an error, of what it came from too."""
    while error is not None:
        yield "".join(traceback.format_exception(error))
        yield repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "answer",
    [
        error(401, f"Incorrect API key provided: {KEY}."),
        error(400, "x" * 478 + KEY),
        error(400, f"You sent Bearer {KEY}", param="logprobs"),
        replace(error(400), body=f'{{"error": "{KEY.replace("-", chr(92) + "u002d")}"}}'.encode()),
        Answer("html", 500, f"<html>Authorization: Bearer {KEY}</html>".encode()),
        Answer("text", 500, f"Authorization: Bearer {KEY}".encode()),
        replace(reply(), body=f'{{"error": {{"message": "{KEY}"}}}}'.encode()),
        reply(f"Your key is {KEY}"),
        DROP,
    ],
)
def test_the_key_is_in_the_header_and_nowhere_else(
    answer: Answer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(in_turn(answer)) as fake:
        outcomes, client = asyncio.run(
            ask_all(fake.base_url, [request(top_logprobs=1)] * 2, QUICK, 1)
        )
    assert fake.asked[0].headers["authorization"] == f"Bearer {KEY}"
    texts = [caplog.text, repr(client), str(client.lacking), repr(outcomes), *capfd.readouterr()]
    texts += [str(vars(record)) for record in caplog.records]
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            texts += shown(outcome)
    assert caplog.records
    # Nor a part of it that is nearly all.
    assert not [text for text in texts if KEY[:-4] in text]


def test_words_that_stand_for_a_key_are_not_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ollama")
    with serve(in_turn(reply("about ollama"))) as fake:
        got = ask_one(fake)
    assert isinstance(got, ChatReply)
    assert got.text == "about ollama"


def test_an_endpoint_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serve(in_turn(reply(), error(401))) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        (got, refused), client = asyncio.run(ask_all("", [request(), request()], QUICK, 1))
    assert isinstance(got, ChatReply)
    assert isinstance(refused, EndpointRefuses)
    assert "wants a key" in str(refused)
    assert repr(client) == f"OpenAIClient('{fake.base_url}')"


@pytest.mark.parametrize(
    ("base_url", "key", "found"),
    [
        (None, "", "there is no key for OpenAI"),
        ("https://api.openai.com/v1/", " ", "there is no key for OpenAI"),
        (None, f"{KEY}\n{KEY}", "this cannot be a key"),
        (None, f"“{KEY}”", "this cannot be a key"),
        ("localhost:8000", KEY, "this is not the address"),
        ("http://", KEY, "this is not the address"),
        ("http://host:port/v1", KEY, "this is not the address"),
        ("http://[::1/v1", KEY, "this is not the address"),
        (f"http://me:{KEY}@host/v1", KEY, "has a name or password in it"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_one_is_refused_before_anything_is_sent(
    base_url: str | None, key: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigurationError) as caught:
        OpenAIClient(base_url, CallLimits(1), QUICK)
    assert found in str(caught.value)
    assert KEY not in str(caught.value)
