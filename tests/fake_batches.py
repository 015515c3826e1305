"""A scripted Batch API on loopback: files go up, batches go through states, results come down.

The same script that answers single requests answers the lines of a batch, once, when the batch
reaches its last state; what they cost is counted then, fetched or not.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from .fake_openai import Answer, FakeOpenAI, Received, Script, error

Route = Literal["upload", "create", "list", "retrieve", "content"]
LAST_STATES = ("completed", "expired", "cancelled", "failed")


@dataclass(frozen=True, slots=True)
class Course:
    """How a batch goes.

    Attributes:
        states: the one at its making, then one for each time it is asked after; the last stays.
        n_answered: so many of its lines are answered; None: all.
        n_left_out: so many of the others stand in no file at all.
        failure: code and message where it fails as a whole.
    """

    states: Sequence[str] = ("validating", "in_progress", "completed")
    n_answered: int | None = None
    n_left_out: int = 0
    failure: tuple[str, str] | None = None


AT_ONCE = Course(("completed",))


@dataclass(frozen=True, slots=True)
class Interruption:
    """What is answered instead, before or after the thing asked for was done."""

    answer: Answer
    is_done: bool = True


@dataclass(slots=True)
class MadeBatch:
    """A batch at this provider."""

    batch_id: str
    lines: list[dict[str, Any]]
    metadata: dict[str, str] | None
    course: Course
    n_asked_after: int = 0
    files: tuple[str | None, str | None] = (None, None)
    n_done: int = 0
    n_failed: int = 0
    is_executed: bool = False

    @property
    def state(self) -> str:
        return self.course.states[min(self.n_asked_after, len(self.course.states) - 1)]


class FakeBatches(FakeOpenAI):
    """What was asked of it and what it did.

    `interruptions` are taken in turn, by route; None lets one pass. `arrived` counts by route.
    """

    def __init__(
        self,
        script: Script,
        courses: Callable[[int], Course] = lambda number: AT_ONCE,
        interruptions: dict[Route, list[Interruption | None]] | None = None,
    ) -> None:
        super().__init__(script)
        self.courses = courses
        self.interruptions = interruptions or {}
        self.arrived: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, MadeBatch] = {}
        self.times_executed: Counter[str] = Counter()
        self.seen_bodies: dict[str, list[dict[str, Any]]] = defaultdict(list)

    async def respond(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, _, address = received.line.partition(" ")
        path = urlsplit(address).path.removeprefix("/v1/").split("/")
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        do: Callable[[], Answer]
        route: Route
        match method, path:
            case "POST", ["files"]:
                route, do = "upload", lambda: self._upload(received)
            case "POST", ["batches"]:
                route, do = "create", lambda: self._create(json.loads(received.content))
            case "GET", ["batches"]:
                route, do = "list", lambda: self._list(query)
            case "GET", ["batches", batch_id]:
                route, do = "retrieve", lambda: self._retrieve(batch_id)
            case "GET", ["files", file_id, "content"]:
                route, do = "content", lambda: self._content(file_id)
            case _:
                await super().respond(received, reader, writer)
                return
        planned = self.interruptions.get(route)
        interruption = planned.pop(0) if planned else None
        answer = do() if interruption is None or interruption.is_done else Answer("undone")
        self.arrived[route] += 1
        if interruption is not None:
            # Of an answer that breaks off halfway, the half is that of the right one.
            body = interruption.answer.body or answer.body
            answer = replace(interruption.answer, body=body)
        await self.send(answer, reader, writer)

    def _upload(self, received: Received) -> Answer:
        boundary = re.search(r"boundary=(\S+)", received.headers["content-type"])
        assert boundary is not None
        parts = received.content.split(b"--" + boundary[1].encode())
        fields = dict(_field(part) for part in parts if b"\r\n\r\n" in part)
        assert fields["purpose"] == b"batch"
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = fields["file"]
        return _json("upload", {"id": file_id, "object": "file", "purpose": "batch"})

    def _create(self, body: dict[str, Any]) -> Answer:
        assert (body["completion_window"], body["endpoint"]) == ("24h", "/v1/chat/completions")
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        for line in lines:
            assert (line["method"], line["url"]) == ("POST", body["endpoint"])
        number = len(self.batches)
        made = MadeBatch(f"batch_{number}", lines, body.get("metadata"), self.courses(number))
        self.batches[made.batch_id] = made
        return _json("create", self._described(made))

    def _list(self, query: dict[str, str]) -> Answer:
        newest_first = [*reversed(self.batches.values())]
        names = [made.batch_id for made in newest_first]
        begin = names.index(query["after"]) + 1 if "after" in query else 0
        end = begin + min(int(query.get("limit", 20)), 2)  # pages are small here
        page = [self._described(made) for made in newest_first[begin:end]]
        more = end < len(names)
        return _json("list", {"object": "list", "data": page, "has_more": more})

    def _retrieve(self, batch_id: str) -> Answer:
        if batch_id not in self.batches:
            return error(404, f"No batch found with id '{batch_id}'")
        made = self.batches[batch_id]
        made.n_asked_after += 1
        return _json("retrieve", self._described(made))

    def _content(self, file_id: str) -> Answer:
        if file_id not in self.files:
            return error(404, "No such File object")
        return Answer("content", body=self.files[file_id], content_type="application/jsonl")

    def _described(self, made: MadeBatch) -> dict[str, Any]:
        has_ended = made.state in LAST_STATES
        if has_ended and not made.is_executed:
            self._execute(made)
        failure = made.course.failure
        errors = [{"code": failure[0], "message": failure[1], "line": None}] if failure else []
        return {
            "id": made.batch_id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "input_file_id": "file-x",
            "status": made.state,
            "created_at": 1_000,
            "completed_at" if made.state == "completed" else "expired_at": (
                4_600 if has_ended else None
            ),
            "output_file_id": made.files[0],
            "error_file_id": made.files[1],
            "errors": {"object": "list", "data": errors} if errors and has_ended else None,
            "metadata": made.metadata,
            "request_counts": {
                "total": len(made.lines), "completed": made.n_done, "failed": made.n_failed,
            },
        }  # fmt: skip

    def _execute(self, made: MadeBatch) -> None:
        made.is_executed = True
        if made.course.failure is not None:
            return
        n_answered = len(made.lines) if made.course.n_answered is None else made.course.n_answered
        good, bad = [], []
        for number, line in enumerate(made.lines):
            result = {"id": f"batch_req_{number}", "custom_id": line["custom_id"]}
            if number >= n_answered:
                if number >= n_answered + made.course.n_left_out:
                    failure = {"code": f"batch_{made.state}", "message": "It came to no turn."}
                    bad.append({**result, "response": None, "error": failure})
                continue
            self.times_executed[line["custom_id"]] += 1
            self.seen_bodies[line["custom_id"]].append(line["body"])
            asked = self.asked_with(line["body"], {})
            answer = self.script(asked)
            self.counts[answer.kind] += 1
            self.count_reply(asked, answer)
            response = {
                "status_code": answer.status, "request_id": "r", "body": json.loads(answer.body),
            }  # fmt: skip
            results = good if answer.status == 200 else bad
            results.append({**result, "response": response, "error": None})
        made.n_done, made.n_failed = len(good), len(bad)
        made.files = (self._keep(good), self._keep(bad))

    def _keep(self, results: list[dict[str, Any]]) -> str | None:
        if not results:
            return None
        file_id = f"file-{len(self.files)}"
        # The order of results is not that of requests.
        lines = [json.dumps(result) for result in reversed(results)]
        self.files[file_id] = "\n".join(lines).encode()
        return file_id


def _field(part: bytes) -> tuple[str, bytes]:
    head, _, content = part.partition(b"\r\n\r\n")
    name = re.search(rb'name="([^"]+)"', head)
    assert name is not None
    return name[1].decode(), content.removesuffix(b"\r\n")


def _json(kind: str, content: dict[str, Any]) -> Answer:
    return Answer(kind, body=json.dumps(content).encode())
