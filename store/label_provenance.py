"""How a model came to a label: the messages that it was sent, and what it replied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .calls import find_calls
from .feature_history import LabelRecord
from .records import Call

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ShownMessage:
    """A message of the request, by its sender's role."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """A label's request and reply.

    Attributes:
        messages: exactly as they were sent.
        options: what else decided the reply, such as the temperature, as JSON.
        reply: as it arrived, as JSON; None: none did.
    """

    label: LabelRecord
    call: Call
    messages: tuple[ShownMessage, ...]
    options: str
    reply: str | None


def read_provenance(connection: duckdb.DuckDBPyConnection, label: LabelRecord) -> Provenance | None:
    """What a label was made of; None where no model was asked, or the call is not on record."""
    if label.request_hash is None:
        return None
    call = find_calls(connection, [label.request_hash]).get(label.request_hash)
    if call is None:
        return None
    options = {name: value for name, value in call.request.items() if name != "messages"}
    return Provenance(
        label=label,
        call=call,
        messages=tuple(map(_message, call.request.get("messages") or ())),
        options=_written(options),
        reply=None if call.reply is None else _written(call.reply),
    )


def _message(message: Any) -> ShownMessage:
    content = message.get("content")
    return ShownMessage(
        role=str(message.get("role", "")),
        content=content if isinstance(content, str) else _written(content),
    )


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
