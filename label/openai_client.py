"""Any endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, Ollama, llama.cpp, gateways.

How it is sent, and sent again, is `endpoint_client.py`'s. Left out: streaming, tools, and all but
chat completions.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

from ..store.errors import EndpointRefuses
from .call_limits import CallLimits
from .chat import ChatReply, ChatRequest
from .completion import UnusableAnswer, read_completion
from .endpoint_client import Course, EndpointClient, Patience
from .endpoint_trouble import Trouble
from .request_body import (
    estimated_tokens,
    missing_feature,
    objects_to_prompt_logprobs,
    request_body,
)

log = logging.getLogger(__name__)


class OpenAIClient(EndpointClient[ChatReply]):
    """A chat client (`ChatClient`) over HTTP, for use in one event loop: `async with`.

    What an endpoint does not offer (log probabilities, replies by a JSON schema, JSON at all) it
    says in refusing the parameter. It is then asked without, and so are all later requests.
    """

    _path = "/chat/completions"

    def __init__(
        self, base_url: str | None, limits: CallLimits, patience: Patience | None = None
    ) -> None:
        super().__init__(base_url, limits, patience)
        self._lacking: dict[str, str] = {}

    @property
    def lacking(self) -> dict[str, str]:
        """What the endpoint turned out not to offer, and what it said about that.

        Keys are `logprobs`, `json_schema` and `json_object`.
        """
        return dict(self._lacking)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The endpoint's reply, after as many attempts as it takes and patience allows.

        Raises:
            RequestGivenUp: this request has no usable reply.
            EndpointRefuses: no request will have one: wrong key, no credit, no such model, or
                `HOPELESS` requests in a row were given up on. Nothing is sent from then on.
        """
        return await self._patiently(request.request_hash, partial(self._attempt, request))

    async def _attempt(
        self, request: ChatRequest, course: Course
    ) -> ChatReply | Trouble | EndpointRefuses:
        asked = request.as_dict()
        while True:
            body = request_body(asked, self._lacking)
            outcome = await self._send(body, estimated_tokens(asked), course)
            if not isinstance(outcome, Trouble):
                return outcome
            if objects_to_prompt_logprobs(outcome, body):
                return replace(outcome, reason="no_prompt_logprobs")
            missing = missing_feature(outcome, body)
            if missing is None:
                return outcome
            self._note_lack(missing, outcome.message)

    def _note_lack(self, name: str, message: str) -> None:
        if name not in self._lacking:
            self._lacking[name] = message
            log.warning("%s has no %s, goes on without: %s", self._address, name, message)

    def _read(
        self, content: bytes, course: Course, body: dict[str, Any]
    ) -> ChatReply | UnusableAnswer:
        return read_completion(content, course.seconds, course.attempts, "prompt_logprobs" in body)

    def _used_tokens(self, reply: ChatReply) -> int | None:
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return None
        return reply.prompt_tokens + reply.completion_tokens
