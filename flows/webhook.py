"""Telling somebody elsewhere: a POST of JSON to the address in `SCOPENOTE_WEBHOOK`.

Such an address is a secret, since whoever knows it may post there. So it is read when it is
needed, stands in no record, no log and no message, and of what goes wrong only the kind is said.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_result, wait_random_exponential
from tenacity.stop import stop_after_attempt

VARIABLE = "SCOPENOTE_WEBHOOK"
# Libraries beneath the request that would log where it goes.
_LOGGERS = ("httpx2", "httpcore2")
_PASSING = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class WebhookPatience:
    """How long is waited for somebody who may not be there."""

    attempts: int = 4
    attempt_seconds: float = 10.0
    first_wait_seconds: float = 1.0
    most_wait_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    reason: str | None
    is_passing: bool = False


def webhook_address() -> str | None:
    """Where to post to; None where the environment names nothing."""
    return os.environ.get(VARIABLE, "").strip() or None


def post_to(
    address: str, content: Mapping[str, Any], patience: WebhookPatience | None = None
) -> str | None:
    """Posts JSON; why it was not taken, or None.

    What may pass is tried again: no connection, no answer in time, 408, 425, 429 and 5xx.
    Redirections are not followed, since they would carry the content elsewhere.
    """
    patience = patience or WebhookPatience()
    retrying = Retrying(
        retry=retry_if_result(lambda outcome: outcome.is_passing),
        stop=stop_after_attempt(patience.attempts),
        wait=wait_random_exponential(patience.first_wait_seconds, patience.most_wait_seconds),
        retry_error_callback=_last_outcome,
    )
    with _nobody_logs():
        outcome: _Outcome = retrying(_post, address, content, patience.attempt_seconds)
    return outcome.reason


def _post(address: str, content: Mapping[str, Any], seconds: float) -> _Outcome:
    from httpx2 import Client, HTTPError, InvalidURL, TimeoutException, UnsupportedProtocol

    try:
        with Client(timeout=seconds, follow_redirects=False) as client:
            status = client.post(address, json=content).status_code
    except (InvalidURL, UnsupportedProtocol):
        return _Outcome(f"{VARIABLE} holds no address that begins with https:// or http://")
    except TimeoutException:
        return _Outcome(f"no answer within {seconds:g} seconds", is_passing=True)
    except HTTPError as error:
        return _Outcome(f"no connection ({type(error).__name__})", is_passing=True)
    if 200 <= status < 300:
        return _Outcome(None)
    return _Outcome(f"it answered {status}", is_passing=status in _PASSING or status >= 500)


def _last_outcome(state: RetryCallState) -> _Outcome:
    assert state.outcome is not None  # called after the last attempt
    last: _Outcome = state.outcome.result()
    often = f", {state.attempt_number} times" if state.attempt_number > 1 else ""
    return _Outcome(f"{last.reason}{often}")


@contextmanager
def _nobody_logs() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
