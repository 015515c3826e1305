"""What stands in the files of OpenAI's Batch API: a request a line, and a result a line.

A batch has two files of results, one of answers and one of errors; the lines of both have one
form, come in any order and are read without trusting them. Left out: sending and fetching files.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError

from ..store.records import RecordedRequest
from .chat import ChatReply
from .completion import read_completion
from .endpoint_trouble import Trouble, refusal_by_status, trouble_of_answer
from .request_body import request_body

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


def request_line(request: RecordedRequest, lacking: Container[str]) -> bytes:
    """The line that asks for a request's reply.

    Args:
        request: named by its hash, which comes back with the result.
        lacking: what the endpoint is not asked for (`request_body`).
    """
    line = {
        "custom_id": request.request_hash,
        "method": "POST",
        "url": ENDPOINT,
        "body": request_body(request.request, lacking),
    }
    content = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return content.encode("utf-8", "replace") + b"\n"


@dataclass(frozen=True, slots=True)
class Result:
    """What a line says of a request: its reply, or why there is none.

    A trouble that passes, or that every request would have, is no answer: the request may be in a
    later batch.
    """

    request_hash: str
    outcome: ChatReply | Trouble


class _Response(BaseModel):
    status_code: int
    body: Any = None


def _as_text(value: Any) -> Any:
    return None if value is None else str(value)


class _LineError(BaseModel):
    code: Annotated[str | None, BeforeValidator(_as_text)] = None
    message: Annotated[str | None, BeforeValidator(_as_text)] = None


class _Line(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: _LineError | None = None


def read_result(line: bytes) -> Result | None:
    """What a line of either file says; None where it is not whole, or not one of these.

    A reply's `seconds` and `attempts` are left at 0: the line does not know them.
    """
    try:
        content = _Line.model_validate_json(line)
    except ValidationError:
        return None
    if content.response is None:
        error = content.error or _LineError()
        words = [word for word in (error.code, error.message) if word]
        message = ": ".join(words) or "neither an answer nor an error"
        return Result(content.custom_id, Trouble("unanswered", _on_one_line(message), passes=True))
    status, body = content.response.status_code, content.response.body
    text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    if status != 200:
        return Result(content.custom_id, refusal_by_status(status, {}, text))
    answer = read_completion(text, seconds=0.0, attempts=0)
    if not isinstance(answer, ChatReply):
        return Result(content.custom_id, trouble_of_answer(answer))
    return Result(content.custom_id, answer)


def _on_one_line(text: str) -> str:
    return "".join(filter(str.isprintable, " ".join(text.split())))[:500]
