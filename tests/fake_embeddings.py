"""A scripted endpoint that makes vectors of texts: near each other where words mean the same."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import numpy as np

from .fake_openai import Answer, Asked, FakeOpenAI, Received

# Words of one meaning share an axis; all others together have the last.
MEANINGS = (("doubt", "hesitation", "sceptical"), ("city", "cities", "paris"), ("import", "module"))
DIMENSIONS = len(MEANINGS) + 1


def vector_of(text: str) -> np.ndarray:
    vector = np.full(DIMENSIONS, 0.01, dtype="<f4")
    for word in re.findall("[a-z]+", text.lower()):
        axis = next((at for at, words in enumerate(MEANINGS) if word in words), DIMENSIONS - 1)
        vector[axis] += 3 if axis < DIMENSIONS - 1 else 0.1
    return vector


def vectors_answer(vectors: list[np.ndarray], as_numbers: bool = False, **more: Any) -> Answer:
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector.tolist()
            if as_numbers
            else base64.b64encode(vector.tobytes()).decode(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 1000 * len(vectors), "total_tokens": 1000 * len(vectors)}
    body = {"object": "list", "data": data, "model": "tiny-1", "usage": usage, **more}
    return Answer("reply", body=json.dumps(body).encode())


def embeds(asked: Asked) -> Answer:
    return vectors_answer([vector_of(text) for text in asked.body["input"]])


class FakeEmbeddings(FakeOpenAI):
    """Answers POST /v1/embeddings; a request's `text` is its first."""

    async def respond(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert received.line == "POST /v1/embeddings", received.line
        body = json.loads(received.content)
        asked = self.asked_with(
            {**body, "messages": [{"content": body["input"][0]}]}, received.headers
        )
        await self.send(self.script(asked), reader, writer)
