"""What an endpoint's refusals and unusable answers are taken to mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.label.chat import ChatReply
from scopenote.label.completion import UnusableAnswer, read_completion
from scopenote.label.endpoint_trouble import (
    Trouble,
    refusal_by_status,
    seconds_to_wait,
    trouble_of_answer,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def refusal(status: int, content: Any) -> Trouble:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return refusal_by_status(status, {}, body)


# As the endpoints write them: OpenAI, vLLM, llama.cpp, Ollama, OpenRouter, FastAPI, a proxy.
@pytest.mark.parametrize(
    ("status", "content", "reason", "passes", "refused"),
    [
        (429, {"error": {"code": "rate_limit_exceeded"}}, "rate_limited", True, None),
        (429, {"error": {"code": "insufficient_quota"}}, "bad_request", False, "credit"),
        (402, {"error": {"message": "Insufficient credits", "code": 402}}, None, False, "credit"),
        (401, {"error": {"message": "no", "code": "invalid_api_key"}}, None, False, "key"),
        (403, b"forbidden", None, False, "key"),
        (403, {"error": {"message": "no", "code": "model_not_found"}}, None, False, "model"),
        (404, {"error": 'model "x" not found, try pulling it first'}, None, False, "model"),
        (404, {"detail": "Not Found"}, None, False, "model"),
        (400, {"error": {"message": "no", "code": "model_not_found"}}, None, False, "model"),
        (408, {}, "server_error", True, None),
        (409, {}, "server_error", True, None),
        (500, {"error": {"message": "oops"}}, "server_error", True, None),
        (503, b"<html><body>busy</body></html>", "server_error", True, None),
        (529, b"", "server_error", True, None),
        (400, {"error": {"message": "no such value"}}, "bad_request", False, None),
        (413, b"too large", "bad_request", False, None),
        (422, {"detail": [{"loc": ["body"], "msg": "wrong"}]}, "bad_request", False, None),
        (400, {"error": {"code": "context_length_exceeded"}}, "context_too_long", False, None),
        (
            400,
            {"message": "This model's maximum context length is 4096 tokens.", "code": 400},
            "context_too_long",
            False,
            None,
        ),
        (
            500,
            {"error": {"message": "too much", "type": "exceed_context_size_error", "code": 500}},
            "context_too_long",
            False,
            None,
        ),
    ],
)
def test_a_refusal_passes_or_is_of_this_request_or_of_all(
    status: int, content: Any, reason: str | None, passes: bool, refused: str | None
) -> None:
    trouble = refusal(status, content)
    assert (trouble.passes, trouble.refused, trouble.status) == (passes, refused, status)
    assert reason is None or trouble.reason == reason


def test_a_message_is_short_on_one_line_and_harmless_on_a_terminal() -> None:
    trouble = refusal(400, {"error": {"message": "first\n\x1b[31msecond " + "x" * 5000}})
    assert trouble.message.startswith("first [31msecond xxx")
    assert len(trouble.message) < 600
    assert refusal(500, b"").message == "no message"
    assert refusal(500, b"<HTML>\n" + b"x" * 5000).message == "a web page instead of JSON"
    assert refusal(500, b"\xff\xfe").message


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: st.dictionaries(
        st.sampled_from(["error", "message", "code", "type", "detail", "param"]), inner, max_size=3
    ),
    max_leaves=4,
)


@settings(max_examples=50)
@given(st.integers(400, 599), st.binary(max_size=60) | JSON)
def test_whatever_an_error_says_it_is_judged(status: int, content: Any) -> None:
    trouble = refusal(status, content)
    assert trouble.message
    assert not (trouble.passes and trouble.refused)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30"}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Sat, 99 Nov 2026 12:00:30 GMT"}, None),
    ],
)
def test_how_long_to_wait_is_told_in_seconds_or_as_a_moment(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert seconds_to_wait(headers, NOON) == seconds


@settings(max_examples=30)
@given(st.integers(-(10**8), 10**8), st.integers(0, 10**5))
def test_a_moment_is_counted_by_the_clock_of_the_endpoint_however_wrong_ours_is(
    wrong_by: int, seconds: int
) -> None:
    theirs = NOON + timedelta(seconds=wrong_by)
    headers = {
        "date": format_datetime(theirs, usegmt=True),
        "retry-after": format_datetime(theirs + timedelta(seconds=seconds), usegmt=True),
    }
    assert seconds_to_wait(headers, NOON) == seconds


@settings(max_examples=50)
@given(st.text(max_size=30))
def test_a_wait_that_makes_no_sense_is_none_or_not_negative(text: str) -> None:
    seconds = seconds_to_wait({"retry-after": text, "date": text}, NOON)
    assert seconds is None or 0 <= seconds < float("inf")


MESSAGE = {"message": {"content": "fine"}}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


def read(content: Any) -> ChatReply | UnusableAnswer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_completion(body, 1.5, 2)


def test_a_reply_without_anything_that_may_be_missing_is_a_reply() -> None:
    expected = ChatReply("fine", None, None, None, None, None, None, "", 1.5, 2)
    assert read({"choices": [MESSAGE]}) == expected


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (None, None, None)),
        (USAGE, (5, 0, 2)),
        ({**USAGE, "prompt_tokens_details": None}, (5, 0, 2)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 4}}, (5, 4, 2)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": None}}, (5, 0, 2)),
    ],
)
@pytest.mark.parametrize("choices", [[MESSAGE], []])
def test_tokens_are_as_the_endpoint_counts_them_and_unknown_where_it_does_not(
    usage: Any, tokens: tuple[int | None, ...], choices: list[Any]
) -> None:
    answer = read({"choices": choices, "usage": usage})
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == tokens


@pytest.mark.parametrize(
    ("content", "reason", "passes", "refused"),
    [
        (b"", "not_json", True, None),
        (b'{"choices": [{"mess', "not_json", True, None),
        (b"\xff\xfe", "not_json", True, None),
        (b"  <!doctype html><p>log in", "web_page", True, None),
        (b"\xef\xbb\xbf<HTML>", "web_page", True, None),
        ([], "unreadable", False, None),
        ("text", "unreadable", False, None),
        ({"choices": 5}, "unreadable", False, None),
        ({"choices": [{}]}, "unreadable", False, None),
        ({"choices": [{"message": {"content": ["parts"]}}]}, "unreadable", False, None),
        ({"choices": [{**MESSAGE, "logprobs": {"content": [{"token": "a"}]}}]}, "unreadable",
         False, None),
        ({}, "no_choices", False, None),
        ({"choices": [], "usage": USAGE}, "no_choices", False, None),
        ({"choices": None}, "no_choices", False, None),
        ({"error": "it broke"}, "unreadable", False, None),
        ({"error": {"message": "it broke"}}, "unreadable", False, None),
        ({"error": {"message": "busy", "code": 502}}, "server_error", True, None),
        ({"error": {"message": "slower", "code": "429"}}, "rate_limited", True, None),
        ({"error": {"message": "wrong", "code": 400}}, "bad_request", False, None),
        ({"error": {"message": "no credit", "code": 402}}, "bad_request", False, "credit"),
        ({"error": {"message": "none", "code": "model_not_found"}}, "bad_request", False, "model"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_reply_says_why_and_only_what_a_proxy_spoilt_passes(
    content: Any, reason: str, passes: bool, refused: str | None
) -> None:
    answer = read(content)
    assert isinstance(answer, UnusableAnswer)
    trouble = trouble_of_answer(answer)
    assert (trouble.reason, trouble.passes, trouble.refused) == (reason, passes, refused)
    assert trouble.message
    assert trouble.prompt_tokens == answer.prompt_tokens
