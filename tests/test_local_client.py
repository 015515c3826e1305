"""A model in this process: its replies are those of the slow way, however they are batched."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scopenote.label.chat import ChatReply, ChatRequest, Message
from scopenote.label.endpoint_client import HOPELESS
from scopenote.label.local_client import LocalClient
from scopenote.label.prefix_cache import N_KEPT
from scopenote.store.errors import EndpointRefuses, RequestGivenUp

from .tiny_chat import (
    CONTEXT_TOKENS,
    FAMILIES,
    TURN,
    SlowReply,
    load_slowly,
    memory_for,
    one_thread,
    save_chat_model,
    slow_reply,
    watching,
)

SYSTEM = "Say in a few words what the contexts have in common. Answer in JSON."
OTHER = "Be brief."
USERS = (
    "Is it?",
    "the thing that they said there was nothing but the one thing",
    "0 and then 1 and then 2, and so on until the end of it all, which is when it ends",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("chat-models")
    return {family: save_chat_model(here / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that seldom comes to an end."""
    return save_chat_model(tmp_path_factory.mktemp("endless") / "gemma2", "gemma2", more_ends=())


@pytest.fixture
def gemma(folders: dict[str, Path]) -> Path:
    return folders["gemma2"]


def asked(user: str = USERS[0], system: str = SYSTEM, **more: Any) -> ChatRequest:
    settings = {"temperature": 0.0, "max_tokens": 8, **more}
    return ChatRequest((Message("system", system), Message("user", user)), "tiny", **settings)


def mixture() -> list[ChatRequest]:
    """Of different lengths, limits, temperatures and beginnings; one goes on with a talk."""
    requests = [
        asked(user, system, temperature=temperature, max_tokens=limit, top_logprobs=5, draw=draw)
        for draw, (user, system, temperature, limit) in enumerate(
            (
                (USERS[0], SYSTEM, 0.0, 3),
                (USERS[1], SYSTEM, 1.0, 12),
                (USERS[2], OTHER, 0.7, 12),
                (USERS[2], SYSTEM, 2.0, 12),
                (USERS[1], OTHER, 1.0, 1),
                (USERS[0], SYSTEM, 1.0, 9),
            )
        )
    ]
    talk = (*requests[0].messages, Message("assistant", "what?"), Message("user", "Again."))
    return [*requests, replace(requests[0], messages=talk, top_logprobs=None)]


def answers(folder: Path, requests: Sequence[ChatRequest], **settings: Any) -> list[Any]:
    async def ask() -> list[Any]:
        async with LocalClient(str(folder), "cpu", **settings) as client:
            asking = (client.complete(request) for request in requests)
            return await asyncio.gather(*asking, return_exceptions=True)

    return asyncio.run(ask())


def assert_same(reply: Any, slow: SlowReply, request: ChatRequest, folder: Path) -> None:
    assert isinstance(reply, ChatReply), reply
    assert (reply.text, reply.finish_reason) == (slow.text, slow.finish_reason)
    assert (reply.prompt_tokens, reply.completion_tokens) == (
        slow.prompt_tokens,
        len(slow.written),
    )
    assert (reply.refusal, reply.attempts, reply.model) == (None, 1, str(folder))
    if request.top_logprobs is None:
        assert reply.logprobs is None
        return
    assert reply.logprobs is not None
    decode = load_slowly(folder)[1].decode
    for given, token, all_of_them in zip(reply.logprobs, slow.written, slow.logprobs, strict=True):
        assert given.token == decode([token])
        assert given.logprob == pytest.approx(all_of_them[str(token)], abs=1e-4)
        values = sorted(all_of_them.values(), reverse=True)[: request.top_logprobs]
        assert [value for _, value in given.alternatives] == pytest.approx(values, abs=1e-4)
        names = {decode([int(n)]) for n, value in all_of_them.items() if value > values[-1] - 1e-4}
        assert {name for name, _ in given.alternatives} <= names


@pytest.mark.parametrize(
    "family",
    [
        "gemma2",
        "llama",
        pytest.param("gemma3_text", marks=pytest.mark.slow),
        pytest.param("mistral", marks=pytest.mark.slow),
    ],
)
def test_batched_replies_are_those_of_the_whole_sequence_again_for_each_token(
    folders: dict[str, Path], family: str
) -> None:
    folder, requests = folders[family], mixture()
    slow = [slow_reply(folder, request) for request in requests]
    assert {each.finish_reason for each in slow} == {"stop", "length"}
    with watching() as given:
        replies = answers(folder, requests, batch_size=16)
    for reply, expected, request in zip(replies, slow, requests, strict=True):
        assert_same(reply, expected, request, folder)
    assert max(n_rows for n_rows, _ in given) >= 3, "they were to be written together"


@pytest.mark.parametrize(
    "batch_size", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_a_reply_does_not_depend_on_what_it_is_batched_with(endless: Path, batch_size: int) -> None:
    requests = [replace(each, max_tokens=each.max_tokens + 1) for each in mixture()[::-1]]
    with watching() as given:
        replies = answers(endless, requests, batch_size=batch_size)
    for reply, request in zip(replies, requests, strict=True):
        assert_same(reply, slow_reply(endless, request), request, endless)
    assert max(n_rows for n_rows, _ in given) == batch_size


def test_the_window_of_the_tiny_gemma_hides_tokens_from_it(gemma: Path, tmp_path: Path) -> None:
    """Else the tests above would pass without it."""
    network, tokenizer = load_slowly(gemma)
    network.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    file = tmp_path / "wide" / "config.json"
    file.write_text(file.read_text().replace('"sliding_window": 16', '"sliding_window": 400'))
    narrow, wide = (slow_reply(each, asked(USERS[2])) for each in (gemma, tmp_path / "wide"))
    assert narrow.logprobs[0]["7"] != pytest.approx(wide.logprobs[0]["7"], abs=1e-2)


# --- what is shared ---------------------------------------------------------------------------


def test_what_prompts_share_is_read_once_and_counted(gemma: Path) -> None:
    requests = [asked(user, max_tokens=5) for user in USERS]
    with watching() as given:
        replies = answers(gemma, requests, batch_size=8)
    tokenizer = load_slowly(gemma)[1]
    shared = tokenizer(f"<bos>{TURN}user\n{SYSTEM}\n\n", add_special_tokens=False)["input_ids"]
    assert [reply.cached_tokens for reply in replies] == [0, len(shared), len(shared)]
    # Whatever the model was given was either read or written by some reply, and nothing twice.
    read = sum(reply.prompt_tokens - reply.cached_tokens for reply in replies)
    # The last token that is written is not read again; one that ends a reply is not counted.
    written = sum(reply.completion_tokens - (reply.finish_reason == "length") for reply in replies)
    assert sum(n_rows * n_tokens for n_rows, n_tokens in given) == read + written


def test_what_is_shared_serves_later_batches_until_others_take_its_place(gemma: Path) -> None:
    systems = [SYSTEM, *(f"{n} is another one." for n in range(N_KEPT - 1))]
    again = [SYSTEM, "0 is another one.", "One too many.", SYSTEM, "1 is another one."]
    every = enumerate([*systems, *again])
    requests = [asked(str(n), system, max_tokens=2) for n, system in every]
    replies = answers(gemma, requests, batch_size=1)
    was_kept = [reply.cached_tokens > 0 for reply in replies]
    # The first and its repetition are the last used when the new one comes: another one goes.
    assert was_kept == [False] * N_KEPT + [True, True, False, True, False]
    for reply, request in zip(replies, requests, strict=True):
        assert_same(reply, slow_reply(gemma, request), request, gemma)


# --- drawing ----------------------------------------------------------------------------------


def test_draws_differ_and_each_can_be_had_again(endless: Path) -> None:
    requests = [asked(temperature=1.5, max_tokens=12, draw=draw) for draw in range(6)]
    texts = [reply.text for reply in answers(endless, requests, batch_size=6)]
    assert len(set(texts)) == 6
    again = answers(endless, requests[::-1], batch_size=4)
    assert [reply.text for reply in again] == texts[::-1]


def test_the_likeliest_reply_is_the_same_for_every_draw(gemma: Path) -> None:
    replies = answers(gemma, [asked(draw=draw) for draw in range(3)])
    assert len({reply.text for reply in replies}) == 1


# --- what cannot be answered ------------------------------------------------------------------


def test_a_prompt_that_leaves_no_room_for_its_reply_is_given_up(gemma: Path) -> None:
    n_prompt = slow_reply(gemma, asked(max_tokens=1)).prompt_tokens
    room = CONTEXT_TOKENS - n_prompt
    long, fitting, endless = answers(
        gemma,
        [asked(max_tokens=room + 1), asked(max_tokens=1), asked("the thing " * 200)],
    )
    assert isinstance(fitting, ChatReply)
    for error in (long, endless):
        assert isinstance(error, RequestGivenUp)
        assert error.reason == "context_too_long"
        assert (error.prompt_tokens, error.cached_tokens, error.completion_tokens) == (0, 0, 0)
    assert f"{n_prompt} tokens of prompt and up to {room + 1} of reply" in str(long)
    assert str(CONTEXT_TOKENS) in str(long)


def test_a_talk_that_the_template_refuses_is_given_up(gemma: Path) -> None:
    twice = replace(asked(), messages=(Message("user", "One."), Message("user", "Two.")))
    refused, fine = answers(gemma, [twice, asked()])
    assert isinstance(refused, RequestGivenUp)
    assert refused.reason == "bad_request"
    assert "roles must alternate" in str(refused)
    assert isinstance(fine, ChatReply)


def test_a_batch_without_room_is_halved_and_says_so(
    endless: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [asked(user, max_tokens=6, draw=n) for n in range(3) for user in USERS]
    with watching() as given, memory_for(rows=2), caplog.at_level(logging.WARNING):
        replies = answers(endless, requests, batch_size=8)
    for reply, request in zip(replies, requests, strict=True):
        assert_same(reply, slow_reply(endless, request), request, endless)
    said = [record.getMessage() for record in caplog.records if "no memory" in record.getMessage()]
    assert [line.partition("no memory for ")[2].partition(":")[0] for line in said] == [
        "8 replies at once, goes on with 4",
        "4 replies at once, goes on with 2",
    ]
    assert max(n_rows for n_rows, _ in given) > 2, "more were to be tried"


def test_a_request_without_room_by_itself_is_given_up_and_others_are_not(gemma: Path) -> None:
    requests = [asked(USERS[0]), asked("the thing " * 40), asked(USERS[1])]
    with memory_for(tokens=100):
        first, too_large, last = answers(gemma, requests, batch_size=4)
    assert isinstance(too_large, RequestGivenUp)
    assert too_large.reason == "out_of_memory"
    assert "Tried to allocate 2 GiB." in (too_large.found or "")
    assert too_large.prompt_tokens == 0
    for reply, request in ((first, requests[0]), (last, requests[2])):
        assert_same(reply, slow_reply(gemma, request), request, gemma)


def test_where_nothing_has_room_the_run_stops(gemma: Path) -> None:
    with memory_for(tokens=10):
        outcomes = answers(gemma, [asked(draw=n) for n in range(HOPELESS + 4)], batch_size=4)
    assert [type(each) for each in outcomes] == [RequestGivenUp] * HOPELESS + [EndpointRefuses] * 4
    assert outcomes[-1] is not outcomes[-2]


# --- the event loop ---------------------------------------------------------------------------


def test_the_event_loop_goes_on_while_the_model_loads_and_computes(endless: Path) -> None:
    async def count() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with LocalClient(str(endless), "cpu") as client:
            while_loading = ticks
            asking = (client.complete(asked(draw=n, max_tokens=120)) for n in range(4))
            await asyncio.gather(*asking)
            while_computing = ticks - while_loading
        ticking.cancel()
        return while_loading, while_computing

    while_loading, while_computing = asyncio.run(count())
    assert while_loading >= 5
    # The pause in which a batch gathers has 20 at most.
    assert while_computing >= 50


def test_what_is_unfinished_at_the_end_is_cancelled_and_not_computed(endless: Path) -> None:
    requests = [asked(max_tokens=300, draw=n) for n in range(6)]

    async def leave(given: list[tuple[int, int]]) -> list[asyncio.Task[ChatReply]]:
        async with LocalClient(str(endless), "cpu", batch_size=3) as client:
            tasks = [asyncio.create_task(client.complete(request)) for request in requests]
            while not any(n_rows == 3 for n_rows, _ in given):
                await asyncio.sleep(0.001)
        await asyncio.wait(tasks, timeout=5)
        return tasks

    with watching() as given:
        tasks = asyncio.run(leave(given))
        n_given = len(given)
        assert all(task.cancelled() for task in tasks)
        assert n_given < 100
        time.sleep(0.1)
        assert len(given) == n_given


def test_a_caller_who_gives_up_takes_nobody_along(gemma: Path) -> None:
    async def ask() -> list[Any]:
        async with LocalClient(str(gemma), "cpu", batch_size=2) as client:
            tasks = [asyncio.create_task(client.complete(asked(draw=n))) for n in range(5)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[3].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(ask())
    assert [isinstance(each, ChatReply) for each in outcomes] == [False, True, True, False, True]


def test_requests_that_come_later_are_answered_as_well(gemma: Path) -> None:
    async def ask() -> list[ChatReply]:
        async with LocalClient(str(gemma), "cpu") as client:
            return [await client.complete(asked(user)) for user in USERS]

    for reply, user in zip(asyncio.run(ask()), USERS, strict=True):
        assert_same(reply, slow_reply(gemma, asked(user)), asked(user), gemma)
