"""A scripted endpoint on loopback that speaks OpenAI's chat completions over real HTTP.

A script is a function from what was asked to an `Answer`, good or bad. The server counts every
request it got, every reply that left it and every token it would have charged for. It runs in a
thread of its own, so that tests may drive clients from any event loop or from none.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any, Literal, TypeVar

HTML = b"<!DOCTYPE html>\n<html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came.

    `text` is its last message, `conversation` a hash of all of them, and `times_before` how often
    that conversation had come before.
    """

    body: dict[str, Any]
    headers: dict[str, str]
    text: str
    conversation: str
    times_before: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server does with a request; `kind` is what it is counted under."""

    kind: str
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    then: Literal["answer", "drop", "drop halfway", "hang", "hang halfway", "drip"] = "answer"
    after_seconds: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)


Script = Callable[[Asked], Answer]


@dataclass(frozen=True, slots=True)
class Received:
    """A request of any kind: `line` is its method and path, with the query."""

    line: str
    headers: dict[str, str]
    content: bytes


def reply(
    text: str | None = "fine", prompt: int = 7, cached: int = 2, written: int = 3, **more: Any
) -> Answer:
    """A completion; `more` goes into its choice (`logprobs`, `finish_reason`, `message`)."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        **more,
    }
    return completion([choice], prompt, cached, written)


def completion(
    choices: list[dict[str, Any]], prompt: int = 7, cached: int = 2, written: int = 3
) -> Answer:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake-model-2026-11-01",
        "choices": choices,
        "usage": usage,
    }
    counted = {"prompt": prompt, "cached": cached, "written": written}
    return Answer("reply", body=json.dumps(body).encode(), usage=counted)


def refusal() -> Answer:
    return reply(None, message={"role": "assistant", "content": None, "refusal": "I cannot."})


def error(
    status: int, message: str = "no", headers: dict[str, str] | None = None, **more: Any
) -> Answer:
    """An error in OpenAI's form; `more` are its `code`, `param` and `type`."""
    content = json.dumps({"error": {"message": message, **more}})
    return Answer(f"error {status}", status, content.encode(), headers or {})


def too_many(retry_after: str | None = None) -> Answer:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return error(429, "slow down", headers, code="rate_limit_exceeded")


def html(status: int = 200) -> Answer:
    return Answer("html", status, HTML, content_type="text/html")


def not_json() -> Answer:
    return Answer("not json", body=b'{"choices": [{"message": {"content": "cut o')


DROP = Answer("drop", then="drop")
DROP_HALFWAY = Answer("drop", body=b"x" * 1000, then="drop halfway")
HANG = Answer("hang", then="hang")


class FakeOpenAI:
    """What was asked of it and what it answered, while it runs and afterwards."""

    def __init__(self, script: Script, keeps_requests: bool = True) -> None:
        self.script = script
        self._keeps_requests = keeps_requests
        self.n_asked = 0
        self.base_url = ""
        self.asked: list[Asked] = []
        self.counts: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.most_at_once = 0
        self.sent_after_reply: list[str] = []
        self.mistakes: list[Exception] = []
        self.at_once = 0
        self._times: Counter[str] = Counter()
        self._replied: set[str] = set()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        ready.set()
        await stop.wait()
        server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (received := await self._receive(reader)) is not None:
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    await self.respond(received, reader, writer)
                finally:
                    self.at_once -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away: that is its right
        except Exception as error:
            self.mistakes.append(error)  # of a script or of this server: the test shall fail
        finally:
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> Received | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        return Received(lines[0].removesuffix(" HTTP/1.1"), headers, content)

    async def respond(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert received.line == "POST /v1/chat/completions", received.line
        asked = self.asked_with(json.loads(received.content), received.headers)
        answer = self.script(asked)
        if await self.send(answer, reader, writer):
            self.count_reply(asked, answer)

    def asked_with(self, body: dict[str, Any], headers: dict[str, str]) -> Asked:
        text = str(body["messages"][-1]["content"])
        conversation = md5(json.dumps(body["messages"]).encode()).hexdigest()
        asked = Asked(body, headers, text, conversation, self._times[conversation])
        self._times[conversation] += 1
        self.n_asked += 1
        if self._keeps_requests:
            self.asked.append(asked)
        if conversation in self._replied:
            self.sent_after_reply.append(conversation)
        return asked

    def count_reply(self, asked: Asked, answer: Answer) -> None:
        if answer.kind == "reply":
            self._replied.add(asked.conversation)
            self.tokens.update(answer.usage)

    async def send(
        self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether all of it left, and somebody was there to take it."""
        self.counts[answer.kind] += 1
        if answer.after_seconds:
            await asyncio.sleep(answer.after_seconds)
        if answer.then == "hang":
            await reader.read()  # until the client hangs up
            return False
        if answer.then == "drop":
            writer.transport.abort()
            return False
        head = [
            f"HTTP/1.1 {answer.status} Scripted",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
        if answer.then == "drop halfway":
            writer.write(answer.body[: len(answer.body) // 2])
            await writer.drain()
            writer.transport.abort()
            return False
        if answer.then == "hang halfway":
            writer.write(answer.body[: len(answer.body) // 2])
            await writer.drain()
            await reader.read()
            return False
        if answer.then == "drip":  # each byte in time, the whole never
            for byte in answer.body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        else:
            writer.write(answer.body)
        await writer.drain()
        return not reader.at_eof()  # else nobody waited for it any more


@contextmanager
def serve(script: Script, keeps_requests: bool = True) -> Iterator[FakeOpenAI]:
    """Runs the server until the end of the block."""
    with running(FakeOpenAI(script, keeps_requests)) as fake:
        yield fake


Server = TypeVar("Server", bound=FakeOpenAI)


@contextmanager
def running(fake: Server) -> Iterator[Server]:
    """Runs a server until the end of the block."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        loop.run_until_complete(fake.serve(ready, stop))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        # Cancelled conversations end before their loop does.
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10), "the scripted server did not start"
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    if fake.mistakes:
        raise fake.mistakes[0]


def in_turn(*answers: Answer) -> Script:
    """Answers the first request with the first answer and so on, the last one for ever."""
    number = 0

    def script(asked: Asked) -> Answer:
        nonlocal number
        answer = answers[min(number, len(answers) - 1)]
        number += 1
        return answer

    return script
