"""Vectors from an endpoint over real HTTP: read without trust, sent again where that may help."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scopenote.label.call_limits import CallLimits
from scopenote.label.embedding_client import EmbeddingClient, EmbeddingReply, EmbeddingRequest
from scopenote.store.errors import EndpointRefuses, RequestGivenUp

from .fake_embeddings import DIMENSIONS, FakeEmbeddings, embeds, vector_of, vectors_answer
from .fake_openai import Answer, Script, error, html, in_turn, running, too_many
from .test_openai_client import KEY, QUICK

TEXTS = ("expressions of doubt", "city names")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


def ask(script: Script) -> tuple[EmbeddingReply, FakeEmbeddings]:
    async def embed(fake: FakeEmbeddings) -> EmbeddingReply:
        async with EmbeddingClient(fake.base_url, CallLimits(4), QUICK) as client:
            return await client.embed(EmbeddingRequest("tiny", TEXTS))

    with running(FakeEmbeddings(script)) as fake:
        return asyncio.run(embed(fake)), fake


@pytest.mark.parametrize("as_numbers", [False, True])
def test_vectors_come_in_the_order_of_the_texts_and_have_length_one(as_numbers: bool) -> None:
    def script(asked: object) -> Answer:
        answer = vectors_answer([vector_of(text) for text in TEXTS], as_numbers)
        content = json.loads(answer.body)
        return replace(answer, body=json.dumps({**content, "data": content["data"][::-1]}).encode())

    reply, fake = ask(script)
    expected = np.stack([vector_of(text) / np.linalg.norm(vector_of(text)) for text in TEXTS])
    assert reply.vectors.shape == (2, DIMENSIONS)
    np.testing.assert_allclose(reply.vectors, expected, rtol=1e-6)
    assert (reply.prompt_tokens, reply.model, reply.attempts) == (2000, "tiny-1", 1)
    body = fake.asked[0].body
    assert (body["model"], body["input"]) == ("tiny", list(TEXTS))
    assert fake.asked[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "trouble", [too_many("0"), error(503), html(), Answer("cut", body=b'{"da')]
)
def test_what_passes_is_asked_again(trouble: Answer) -> None:
    reply, _ = ask(in_turn(trouble, vectors_answer([vector_of(text) for text in TEXTS])))
    assert reply.attempts == 2


def with_data(data: object) -> Answer:
    return Answer("bad", body=json.dumps({"data": data}).encode())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (vectors_answer([vector_of("one only")]), "1 vectors for 2 texts"),
        (with_data(None), "no embeddings"),
        (with_data([{"index": 0, "embedding": "!!"}, {"index": 1, "embedding": "!!"}]), "none"),
        (
            with_data([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2]}]),
            "none",
        ),
        (with_data([{"index": 0, "embedding": [0.0]}, {"index": 1, "embedding": [1.0]}]), "none"),
        (with_data([{"index": 0, "embedding": [1.0]}] * 2), "2 vectors for 2 texts"),
        (with_data([{"index": 0, "embedding": [1e999]}, {"index": 1, "embedding": [1.0]}]), "none"),
        (error(400, "no such encoding"), "no such encoding"),
    ],
)
def test_what_is_no_vector_is_given_up_and_said(answer: Answer, said: str) -> None:
    with pytest.raises(RequestGivenUp) as given_up:
        ask(in_turn(answer))
    assert said in str(given_up.value)
    assert given_up.value.attempts == 1


def test_a_model_that_the_endpoint_does_not_know_ends_all() -> None:
    with pytest.raises(EndpointRefuses, match="does not know this model"):
        ask(in_turn(error(404, "no model tiny")))


def test_the_key_stands_in_no_error() -> None:
    with pytest.raises(EndpointRefuses) as refused:
        ask(in_turn(error(401, f"wrong key {KEY}")))
    assert KEY not in str(refused.value)


def test_the_script_of_the_endpoint_puts_synonyms_near_each_other() -> None:
    reply, _ = ask(embeds)
    assert reply.vectors[0] @ reply.vectors[1] < 0.1
