"""The lines of a batch's files: what is asked, and what comes back in whatever state."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scopenote.label.batch_lines import read_result, request_line
from scopenote.label.call_records import to_record
from scopenote.label.chat import ChatReply, ChatRequest, Message
from scopenote.label.endpoint_trouble import Trouble

from .fake_openai import error, reply

SCHEMA = {"type": "object", "properties": {"z": {}, "a": {}}}


def request(**more: Any) -> ChatRequest:
    messages = (Message("system", "Be brief."), Message("user", "«é» 日本 \x1b"))
    return ChatRequest(messages, "fake-model", 0.5, 20, **more)


def test_a_line_asks_for_what_the_request_says_by_its_hash() -> None:
    asked = request(reply_schema=SCHEMA, top_logprobs=2, draw=3)
    line = request_line(to_record(asked, 1), lacking=())
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "custom_id": asked.request_hash,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "fake-model",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "«é» 日本 \x1b"},
            ],
            "temperature": 0.5,
            "max_tokens": 20,
            "logprobs": True,
            "top_logprobs": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA},
            },
        },
    }


@pytest.mark.parametrize(
    ("lacking", "form"),
    [
        (["json_schema"], {"type": "json_object"}),
        (["json_schema", "json_object"], None),
        (["logprobs", "json_schema", "json_object"], None),
    ],
)
def test_a_line_goes_without_what_the_endpoint_lacks(
    lacking: list[str], form: dict[str, str] | None
) -> None:
    asked = request(reply_schema=SCHEMA, top_logprobs=2)
    body = json.loads(request_line(to_record(asked, 1), lacking))["body"]
    assert body.get("response_format") == form
    assert ("top_logprobs" in body) == ("logprobs" not in lacking)


def test_half_a_surrogate_pair_does_not_spoil_a_file() -> None:
    asked = ChatRequest((Message("user", "a\ud800b"),), "m", 0, 5)
    body = json.loads(request_line(to_record(asked, 0), ()))["body"]
    assert body["messages"][0]["content"] == "a?b"


def result_line(response: Any, failure: Any = None, custom_id: Any = "ab12") -> bytes:
    content = {"id": "r", "custom_id": custom_id, "response": response, "error": failure}
    return json.dumps(content).encode()


def test_a_reply_is_read_as_a_single_one_would_be() -> None:
    body = json.loads(reply("fine", 11, 4, 1).body)
    result = read_result(result_line({"status_code": 200, "body": body}))
    assert result is not None
    assert result.request_hash == "ab12"
    assert result.outcome == ChatReply(
        "fine", "stop", None, None, 11, 4, 1, "fake-model-2026-11-01", 0.0, 0
    )


@pytest.mark.parametrize(
    ("answer", "reason", "passes", "refused"),
    [
        (error(500), "server_error", True, None),
        (error(429, code="rate_limit_exceeded"), "rate_limited", True, None),
        (error(429, code="insufficient_quota"), "bad_request", False, "credit"),
        (error(400, "This model's maximum context length is 9"), "context_too_long", False, None),
        (error(400, "max_tokens is too large"), "bad_request", False, None),
        (error(404, code="model_not_found"), "bad_request", False, "model"),
    ],
)
def test_an_error_of_a_line_is_judged_as_that_of_a_single_request(
    answer: Any, reason: str, passes: bool, refused: str | None
) -> None:
    response = {"status_code": answer.status, "body": json.loads(answer.body)}
    result = read_result(result_line(response))
    assert result is not None
    assert isinstance(result.outcome, Trouble)
    found = (result.outcome.reason, result.outcome.passes, result.outcome.refused)
    assert found == (reason, passes, refused)


def test_a_completion_without_a_choice_says_what_it_cost() -> None:
    body = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    result = read_result(result_line({"status_code": 200, "body": body}))
    assert result is not None
    assert isinstance(result.outcome, Trouble)
    assert (result.outcome.reason, result.outcome.prompt_tokens) == ("no_choices", 9)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"code": "batch_expired", "message": "Too\nlate."}, "batch_expired: Too late."),
        ({"code": 7, "message": None}, "7"),
        (None, "neither an answer nor an error"),
    ],
)
def test_a_request_that_had_no_turn_may_have_one_later(failure: Any, message: str) -> None:
    result = read_result(result_line(None, failure))
    assert result is not None
    assert result.outcome == Trouble("unanswered", message, passes=True)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"<html>",
        b'{"custom_id": "ab12", "response": {"status_co',
        b"[" * 100_000,
        b'["ab12"]',
        result_line({"status_code": 200}, custom_id=None),
        result_line({"body": {}}),
        result_line("fine"),
    ],
)
def test_a_line_that_is_damaged_says_nothing(line: bytes) -> None:
    assert read_result(line) is None
