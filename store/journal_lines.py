"""What stands in a line of a journal: a call, or the messages that the calls after it share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from .records import Call, content_hash

# What of a call JSON holds as it is.
_PLAIN = (
    "request_hash",
    "purpose",
    "model",
    "reply",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "seconds",
    "attempts",
    "error",
    "draw",
)


class SplitRequest(NamedTuple):
    """A request without its shared messages, these, and what they are called."""

    request: dict[str, Any]
    messages: list[Any]
    static_hash: str | None


def split_request(call: Call) -> SplitRequest:
    """Takes the shared messages out of a call's request."""
    if not call.n_static:
        return SplitRequest(dict(call.request), [], None)
    messages = call.request["messages"]
    shared, own = messages[: call.n_static], messages[call.n_static :]
    return SplitRequest({**call.request, "messages": own}, shared, content_hash(shared))


def join_request(request: Mapping[str, Any], shared: list[Any]) -> dict[str, Any]:
    """Puts the shared messages back."""
    return {**request, "messages": [*shared, *request["messages"]]} if shared else dict(request)


def to_json(value: Any) -> str:
    """JSON as it is stored: on one line, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def messages_line(split: SplitRequest) -> bytes:
    """The line with shared messages, which comes before the calls that share them."""
    return _line({"static_hash": split.static_hash, "messages": split.messages})


def call_line(call: Call, split: SplitRequest) -> bytes:
    """The line of a call."""
    record = {
        **{name: getattr(call, name) for name in _PLAIN},
        "request": split.request,
        "static_hash": split.static_hash,
        "usd": None if call.usd is None else str(call.usd),
        "created_at": call.created_at.isoformat(),
    }
    return _line(record)


def _line(record: dict[str, Any]) -> bytes:
    return to_json(record).encode() + b"\n"


def read_line(line: bytes, shared: dict[str, list[Any]]) -> Call | None:
    """The call of a line; shared messages are added to `shared` instead, by their hash.

    Raises:
        ValueError: the line is torn or damaged, or the one with its shared messages was.
    """
    if line == b"\n":
        return None
    if not line.endswith(b"\n"):
        raise ValueError("the line has no end")
    try:
        record = json.loads(line)
        if "request_hash" in record:
            return _call(record, shared)
        shared[record["static_hash"]] = record["messages"]
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError("the line is damaged") from error
    return None


def _call(record: dict[str, Any], shared: dict[str, list[Any]]) -> Call:
    static_hash, usd = record["static_hash"], record["usd"]
    messages = [] if static_hash is None else shared[static_hash]
    return Call(
        **{name: record[name] for name in _PLAIN},
        request=join_request(record["request"], messages),
        n_static=len(messages),
        usd=None if usd is None else Decimal(usd),
        created_at=datetime.fromisoformat(record["created_at"]),
    )
