"""Any endpoint that makes vectors of texts as OpenAI's does: OpenAI, vLLM, Ollama, llama.cpp.

How it is sent, and sent again, is `endpoint_client.py`'s. Left out: vectors of other things than
text, and of another length than the model's own.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..store.errors import EndpointRefuses
from ..store.records import content_hash
from .completion import TokenCount, UnusableAnswer, is_web_page
from .endpoint_client import Course, EndpointClient
from .endpoint_trouble import Trouble

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to be made vectors by a model."""

    model: str
    texts: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it is sent, and stored."""
        return {"model": self.model, "input": list(self.texts), "encoding_format": "base64"}

    @property
    def request_hash(self) -> str:
        """Names the request."""
        return content_hash(self.as_dict())


@dataclass(frozen=True, slots=True)
class EmbeddingReply:
    """The vectors of a request's texts, each of length 1, and what they took."""

    vectors: Float32[np.ndarray, "N D"]
    model: str | None
    prompt_tokens: int | None
    seconds: float
    attempts: int


class EmbeddingClient(EndpointClient[EmbeddingReply]):
    """Asks an endpoint for vectors."""

    _path = "/embeddings"

    async def embed(self, request: EmbeddingRequest) -> EmbeddingReply:
        """The endpoint's vectors, after as many attempts as it takes and patience allows.

        Raises:
            RequestGivenUp: this request has no usable reply.
            EndpointRefuses: no request will have one.
        """
        return await self._patiently(request.request_hash, partial(self._attempt, request))

    async def _attempt(
        self, request: EmbeddingRequest, course: Course
    ) -> EmbeddingReply | Trouble | EndpointRefuses:
        n_bytes = sum(len(text.encode("utf-8", "replace")) for text in request.texts)
        return await self._send(request.as_dict(), n_bytes // _BYTES_A_TOKEN, course)

    def _read(
        self, content: bytes, course: Course, body: dict[str, Any]
    ) -> EmbeddingReply | UnusableAnswer:
        return read_embeddings(content, len(body["input"]), course.seconds, course.attempts)

    def _used_tokens(self, reply: EmbeddingReply) -> int | None:
        return reply.prompt_tokens


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Vector(_Answered):
    index: int
    # What knows nothing of base64 sends numbers all the same.
    embedding: str | list[float]


class _Usage(_Answered):
    prompt_tokens: TokenCount = None


class _Embeddings(_Answered):
    data: list[_Vector]
    model: str | None = None
    usage: _Usage | None = None


def read_embeddings(
    content: bytes, n_texts: int, seconds: float, attempts: int
) -> EmbeddingReply | UnusableAnswer:
    """An endpoint's answer, read without trusting it.

    Args:
        content: of the answer.
        n_texts: how many vectors were asked for.
        seconds: that it took.
        attempts: likewise.
    """
    if is_web_page(content):
        return UnusableAnswer("web_page", "a web page instead of JSON")
    try:
        answer = _Embeddings.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return UnusableAnswer("not_json", first["msg"])
        where = ".".join(map(str, first["loc"]))
        return UnusableAnswer("unreadable", f"no embeddings: {where}: {first['msg']}")
    used = answer.usage.prompt_tokens if answer.usage else None
    by_index = {each.index: each.embedding for each in answer.data}
    if sorted(by_index) != list(range(n_texts)) or len(answer.data) != n_texts:
        found = f"{len(answer.data)} vectors for {n_texts} texts"
        return UnusableAnswer("unreadable", found, prompt_tokens=used)
    vectors = _unit_vectors([by_index[number] for number in range(n_texts)])
    if vectors is None:
        return UnusableAnswer("unreadable", "vectors that are none", prompt_tokens=used)
    return EmbeddingReply(vectors, answer.model, used, seconds, attempts)


def _unit_vectors(given: Sequence[str | list[float]]) -> Float32[np.ndarray, "N D"] | None:
    """The vectors as rows of length 1; None where they differ in kind, or some has no length."""
    import numpy as np

    try:
        rows = [
            np.frombuffer(base64.b64decode(each, validate=True), dtype="<f4")
            if isinstance(each, str)
            else np.array(each, dtype=np.float32)
            for each in given
        ]
    except (binascii.Error, ValueError, OverflowError):
        return None
    if len({len(row) for row in rows}) != 1 or not len(rows[0]):
        return None
    stacked = np.stack(rows)
    lengths = np.linalg.norm(stacked, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        return None
    vectors: Float32[np.ndarray, "N D"] = (stacked / lengths).astype(np.float32)
    return vectors
