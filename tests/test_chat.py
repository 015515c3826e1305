"""Requests to models: what their hash tells apart."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from scopenote.label.chat import ChatRequest, Message
from scopenote.store.errors import EndpointRefuses, RequestGivenUp, ScopenoteError

SCHEMA = {"type": "object", "properties": {"label": {}, "explanation": {}}}
REQUEST = ChatRequest(
    (Message("system", "Be brief."), Message("user", "Hello")), "a-model", 0.0, 10, SCHEMA, 5, 0
)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, messages=REQUEST.messages[1:]),
        replace(REQUEST, messages=(Message("user", "Be brief."), REQUEST.messages[1])),
        replace(REQUEST, messages=(Message("system", "Be brief. "), REQUEST.messages[1])),
        replace(REQUEST, model="b-model"),
        replace(REQUEST, temperature=0.1),
        replace(REQUEST, max_tokens=11),
        replace(REQUEST, reply_schema=None),
        replace(REQUEST, reply_schema={**SCHEMA, "properties": {"explanation": {}, "label": {}}}),
        replace(REQUEST, top_logprobs=None),
        replace(REQUEST, top_logprobs=0),
        replace(REQUEST, draw=1),
    ],
)
def test_whatever_decides_the_reply_changes_the_hash(other: ChatRequest) -> None:
    assert other.request_hash != REQUEST.request_hash


def test_what_makes_no_difference_to_the_reply_makes_none_to_the_hash() -> None:
    same = replace(REQUEST, temperature=0, reply_schema=dict(SCHEMA))
    assert same.request_hash == REQUEST.request_hash


@pytest.mark.parametrize(
    "error",
    [
        RequestGivenUp("what", "where", "found", None, None, "timeout", 3, 1.5, 7, 0, None),
        EndpointRefuses("what", "where", mend="mend"),
    ],
)
def test_errors_cross_processes_whole(error: ScopenoteError) -> None:
    assert pickle.loads(pickle.dumps(error)) == error
