"""Calls of no model, for tests of what keeps them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from scopenote.store.records import Call, content_hash

STATIC = {"role": "system", "content": "Say in a few words what these contexts share. " * 20}


def make_call(number: int, **changes: Any) -> Call:
    """A call that differs from every other number's in whatever may differ."""
    asked = {"role": "user", "content": f"contexts of feature {number}: «é»\n日本\t\x00 \u2028"}
    fields: dict[str, Any] = {
        "request_hash": content_hash(["made up", number]),
        "purpose": "explain",
        "model": "gpt-4o-mini",
        "request": {"model": "gpt-4o-mini", "messages": [STATIC, asked], "temperature": 0.7},
        "n_static": 1,
        "reply": {"text": f'{{"label": "feature {number}"}}', "logprobs": [-0.1 * number]},
        "prompt_tokens": 1200 + number,
        "cached_tokens": 1024,
        "completion_tokens": 30 + number,
        "usd": Decimal("0.0000000375") * (number + 1),
        "seconds": 0.1 + number,
        "attempts": 1 + number % 3,
        "error": None,
        "created_at": datetime(2026, 11, 21, 5, tzinfo=UTC) + timedelta(microseconds=number),
        "draw": number % 2,
    }
    return Call(**(fields | changes))


def make_failure(number: int, **changes: Any) -> Call:
    """A call to which no reply came; of the same request as the call of that number."""
    nothing = dict.fromkeys(("reply", "prompt_tokens", "cached_tokens", "completion_tokens"))
    return make_call(number, **({**nothing, "error": "500, six times"} | changes))
