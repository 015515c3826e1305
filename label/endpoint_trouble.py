"""What goes wrong between a client and an endpoint, and what each kind of it means.

Some troubles pass (too many requests, a server's hiccup, a broken connection), some concern one
request, and some every request of a run. Which is which is decided here alone. Left out:
sending, and waiting.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from ..store.errors import EndpointRefuses
from .chat import Reason
from .completion import UnusableAnswer, is_web_page
from .endpoint_access import KEY_VARIABLE

# What all requests of a run have in common and the endpoint may refuse.
Refused = Literal["key", "credit", "model"]

# 402 is what gateways answer (OpenRouter, DeepSeek); OpenAI answers 429 with a code.
_REFUSED_STATUS: Mapping[int, Refused] = {401: "key", 402: "credit", 403: "key", 404: "model"}
_REFUSED_CODE: Mapping[str, Refused] = {
    "invalid_api_key": "key",
    "insufficient_quota": "credit",
    "billing_hard_limit_reached": "credit",
    "billing_not_active": "credit",
    "model_not_found": "model",
}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error"}
# OpenAI and vLLM: "maximum context length"; llama.cpp: "exceeds the available context size".
_TOO_LONG = re.compile(r"maximum context length|context (size|window)|prompt is too long", re.I)
_LONGEST_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Trouble:
    """One sending of a request that gave no reply.

    Attributes:
        reason: the kind of trouble.
        message: what was found, in words, of the endpoint's where it has any.
        status: the HTTP status, if an answer came.
        passes: the same request may succeed a little later.
        refused: what every request will be refused for, if it is that.
        param: the parameter that the endpoint objects to, where it names one.
        wait_seconds: how long the endpoint asks to wait.
        prompt_tokens, cached_tokens, completion_tokens: what was charged, as far as it is known.
    """

    reason: Reason
    message: str
    status: int | None = None
    passes: bool = False
    refused: Refused | None = None
    param: str | None = None
    wait_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    def names(self, *words: str) -> bool:
        """Whether the endpoint objects to a parameter, naming it by one of these words."""
        complaint = f"{self.param or ''} {self.message}".lower()
        return self.status in (400, 422, 501) and any(word in complaint for word in words)


def no_answer(reason: Literal["timeout", "connection"], message: str) -> Trouble:
    """The trouble of a request that nothing came back for."""
    return Trouble(reason, message, passes=True)


def refusal_by_status(
    status: int, headers: Mapping[str, str], body: bytes, now: datetime | None = None
) -> Trouble:
    """The trouble of an answer with an HTTP status of 400 or more.

    Args:
        status: the HTTP status.
        headers: of the answer, their names in any case (`httpx2.Headers`) or in lower case.
        body: of the answer.
        now: the wall clock, for endpoints that name a moment and do not state their own time;
            None reads it.
    """
    code, param, message = _complaint(body)
    wait_seconds = seconds_to_wait(headers, now)
    return _judge(status, code, message, param=param, wait_seconds=wait_seconds)


def trouble_of_answer(answer: UnusableAnswer) -> Trouble:
    """The trouble of an answer with status 200 that is no reply.

    A web page or a damaged body comes from something between here and the model, and passes as
    5xx does. Gateways put the model's own error into an answer with status 200: it is judged as if
    it had come with its status. All else would come again, and is paid for.
    """
    if answer.status is not None or answer.code in _REFUSED_CODE:
        trouble = _judge(answer.status or 200, answer.code, _shortened(answer.message))
    else:
        passes = answer.reason in ("web_page", "not_json")
        trouble = Trouble(answer.reason, _shortened(answer.message), 200, passes)
    return replace(
        trouble,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
    )


def seconds_to_wait(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """What `Retry-After` asks for, in seconds or as a moment (RFC 9110, section 10.2.3).

    A moment is counted from the answer's own `Date`, so that a clock that is wrong here, or jumps,
    does no harm. None where nothing is asked or it makes no sense.
    """
    asked = headers.get("retry-after", "").strip()
    try:
        seconds = float(asked)
    except ValueError:
        moment = _moment(asked)
        if moment is None:
            return None
        told = _moment(headers.get("date", "")) or now or datetime.now(UTC)
        return max(0.0, (moment - told).total_seconds())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _judge(
    status: int,
    code: str | None,
    message: str,
    param: str | None = None,
    wait_seconds: float | None = None,
) -> Trouble:
    reason: Reason = "bad_request"
    passes = False
    # By its code first: OpenAI says "no credit" with the status of "too many requests".
    refused = _REFUSED_CODE.get(code or "", _REFUSED_STATUS.get(status))
    if refused is None:
        if status == 429:
            reason, passes = "rate_limited", True
        elif code in _TOO_LONG_CODES or _TOO_LONG.search(message):
            reason = "context_too_long"  # whatever the status: some servers call it their own error
        elif status in (408, 409) or status >= 500:
            reason, passes = "server_error", True
    return Trouble(reason, message, status, passes, refused, param, wait_seconds)


def _complaint(body: bytes) -> tuple[str | None, str | None, str]:
    """Code, parameter and message, in any of the forms that endpoints use."""
    if is_web_page(body):
        return None, None, "a web page instead of JSON"
    text = body.decode("utf-8", "replace").strip()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None, None, _shortened(text)
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return None, None, _shortened(error if isinstance(error, str) else text)
    message = error.get("message") or error.get("detail") or text
    code = error.get("code")
    if not isinstance(code, str):
        code = error.get("type")  # llama.cpp and vLLM: a number here, their word in `type`
    param = error.get("param")
    return (
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
        _shortened(message if isinstance(message, str) else json.dumps(message)),
    )


def _shortened(text: str) -> str:
    # Without control characters: it will be shown on a terminal.
    text = "".join(filter(str.isprintable, " ".join(text.split()))) or "no message"
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " …"


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# --- in the words of an error -----------------------------------------------------------------

_REFUSALS: Mapping[Refused, tuple[str, str]] = {
    "key": (
        "the endpoint refuses the key",
        f"set {KEY_VARIABLE} to a key that is valid there and may use this model",
    ),
    "credit": (
        "the endpoint gives no more credit",
        "add credit at the provider, then give the command again",
    ),
    "model": (
        "the endpoint does not know this model, or this is not the address of its API",
        "check the model's name and the address (it often ends in /v1)",
    ),
}


def refusal_of_all(
    refused: Refused, trouble: Trouble, where: str, has_key: bool
) -> EndpointRefuses:
    """The error for what every request of a run will be refused for.

    Args:
        refused: what for.
        trouble: which showed it.
        where: the endpoint, and what was asked of it.
        has_key: a key was sent.
    """
    what, mend = _REFUSALS[refused]
    if refused == "key" and not has_key:
        what = "the endpoint wants a key"
    return EndpointRefuses(what, where=where, found=described(trouble), mend=mend)


def described(trouble: Trouble) -> str:
    """A trouble in words: its kind, its status, and what the endpoint said."""
    status = f" (HTTP {trouble.status})" if trouble.status else ""
    return f"{trouble.reason.replace('_', ' ')}{status}: {trouble.message}"
