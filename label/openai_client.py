"""Any endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, Ollama, llama.cpp, gateways.

HTTP is the `openai` package's, with its own retries off: tenacity alone sends again what may
succeed a little later, so that attempts and seconds have one cap each and every sending takes its
turn (`call_limits.py`). What endpoints answer when they do not answer is judged in
`endpoint_trouble.py`. Left out: streaming, tools, and everything but chat completions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from ..store.errors import EndpointRefuses, RequestGivenUp
from .call_limits import CallLimits
from .chat import ChatReply, ChatRequest
from .completion import read_completion
from .endpoint_access import ApiKey, endpoint_address
from .endpoint_trouble import (
    Trouble,
    described,
    no_answer,
    refusal_by_status,
    refusal_of_all,
    trouble_of_answer,
)
from .request_body import (
    estimated_tokens,
    missing_feature,
    objects_to_prompt_logprobs,
    request_body,
)

# So many requests given up on, one after the other and whatever the reason: no other will fare
# better. By chance it does not happen: each was sent several times.
HOPELESS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request is tried.

    Attributes:
        attempts: how often it is sent at most.
        attempt_seconds: how long one sending may take from connecting to the last byte.
        total_seconds: how long sending and backing off may take together.
        first_backoff_seconds: the first pause is drawn between 0 and this, the next between 0 and
            twice as much, and so on; it comes on top of what the endpoint asks for (`Retry-After`).
        longest_backoff_seconds: up to this.
    """

    attempts: int = 8
    attempt_seconds: float = 120.0
    total_seconds: float = 600.0
    first_backoff_seconds: float = 0.5
    longest_backoff_seconds: float = 30.0


@dataclass(slots=True)
class _Course:
    """How far one request is."""

    attempts: int = 0
    seconds: float = 0.0

    async def rest(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.seconds += seconds


class OpenAIClient:
    """A chat client (`ChatClient`) over HTTP, for use in one event loop: `async with`.

    The key is read from the environment (`OPENAI_API_KEY`); it is nowhere but in the requests'
    header, and struck out of whatever an endpoint says about it. Endpoints of one's own need none.

    What an endpoint does not offer (log probabilities, replies by a JSON schema, JSON at all) it
    says in refusing the parameter. It is then asked without, and so are all later requests.

    Args:
        base_url: the endpoint's address up to `/v1`; None for `OPENAI_BASE_URL` or else OpenAI.
        limits: shared by all clients of one endpoint in this process.
        patience: how long each request is tried.

    Raises:
        ConfigurationError: the address is none, or the key is missing or cannot be one.
    """

    def __init__(
        self, base_url: str | None, limits: CallLimits, patience: Patience | None = None
    ) -> None:
        from httpx2 import Response
        from openai import AsyncOpenAI  # half a second, for those who need it

        self._patience = patience or Patience()
        self._address = endpoint_address(base_url)
        self._key = ApiKey.from_environment(self._address)
        self._endpoint = AsyncOpenAI(
            api_key=self._key.for_header,
            base_url=self._address,
            max_retries=0,
            timeout=self._patience.attempt_seconds,
        )
        # What is sent is plain JSON. The package's typed method takes a quarter of a call's time to
        # look for what it might convert; this one it offers for whatever its types do not know.
        self._create = partial(self._endpoint.post, "/chat/completions", cast_to=Response)
        self._limits = limits
        self._backoff = wait_random_exponential(
            multiplier=self._patience.first_backoff_seconds,
            max=self._patience.longest_backoff_seconds,
        )
        self._lacking: dict[str, str] = {}
        self._refusal: EndpointRefuses | None = None
        self._given_up_in_a_row = 0

    def __repr__(self) -> str:
        return f"OpenAIClient({self._address!r})"

    async def __aenter__(self) -> OpenAIClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._endpoint.close()

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
        course = _Course()
        retrying = AsyncRetrying(
            sleep=course.rest,
            wait=self._wait,
            stop=self._stop_for(course),
            retry=retry_if_result(lambda outcome: isinstance(outcome, Trouble) and outcome.passes),
            retry_error_callback=_last_outcome,
        )
        outcome: ChatReply | Trouble | EndpointRefuses
        outcome = await retrying(self._attempt, request, course)
        if isinstance(outcome, ChatReply):
            self._given_up_in_a_row = 0
            return outcome
        if isinstance(outcome, EndpointRefuses):
            raise replace(outcome)  # a copy: one object would gather the tracebacks of all
        raise self._given_up(outcome, course, request)

    async def _attempt(
        self, request: ChatRequest, course: _Course
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

    async def _send(
        self, body: dict[str, Any], n_tokens: int, course: _Course
    ) -> ChatReply | Trouble | EndpointRefuses:
        async with self._limits.turn() as turn:
            # Before booking, so that those who queue up do not wait out their minute for nothing.
            if self._refusal is None:
                await turn.book(n_tokens)
            if self._refusal is not None:
                return self._refusal
            course.attempts += 1
            outcome = await self._exchange(body, course)
            if isinstance(outcome, ChatReply):
                turn.settle(_used_tokens(outcome))
                return outcome
            if outcome.reason == "rate_limited":
                turn.too_much()
        if outcome.refused is not None:
            where = f"{self._address}, model {body['model']}"
            refusal = refusal_of_all(outcome.refused, outcome, where, bool(self._key))
            self._refusal = self._refusal or refusal
            return self._refusal
        return outcome

    async def _exchange(self, body: dict[str, Any], course: _Course) -> ChatReply | Trouble:
        """Sends once. Exceptions end here: their requests carry the key."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        left = self._patience.total_seconds - course.seconds
        limit_seconds = min(self._patience.attempt_seconds, left)
        began = time.monotonic()
        trouble: Trouble | None = None
        try:
            # The package's own timeout is for each read: an endpoint that drips would never end.
            async with asyncio.timeout(limit_seconds):
                answer = await self._create(body=body)
        except (TimeoutError, APITimeoutError):
            trouble = no_answer("timeout", f"no complete answer in {limit_seconds:.3g} s")
        except APIStatusError as error:
            response = error.response
            content = self._key.struck_out_of(response.content)
            trouble = refusal_by_status(response.status_code, response.headers, content)
        except APIConnectionError as error:
            cause = error.__cause__ or error
            trouble = no_answer("connection", str(cause) or type(cause).__name__)
        finally:
            course.seconds += time.monotonic() - began
        if trouble is None:
            content = self._key.struck_out_of(answer.content)
            outcome = read_completion(
                content, course.seconds, course.attempts, "prompt_logprobs" in body
            )
            if isinstance(outcome, ChatReply):
                return outcome
            trouble = trouble_of_answer(outcome)
        # Again, for what JSON had written with escapes, and for causes of broken connections.
        message = self._key.struck_out_of(trouble.message.encode("utf-8", "replace"))
        return replace(trouble, message=message.decode())

    def _note_lack(self, name: str, message: str) -> None:
        if name not in self._lacking:
            self._lacking[name] = message
            log.warning("%s has no %s, goes on without: %s", self._address, name, message)

    def _wait(self, state: RetryCallState) -> float:
        assert state.outcome is not None  # tenacity waits only after an attempt
        asked: float = state.outcome.result().wait_seconds or 0.0
        # On top of what is asked for: all who were told the same would come back together.
        return asked + self._backoff(state)

    def _stop_for(self, course: _Course) -> Callable[[RetryCallState], bool]:
        def stop(state: RetryCallState) -> bool:
            is_last = state.attempt_number >= self._patience.attempts
            return is_last or course.seconds + state.upcoming_sleep >= self._patience.total_seconds

        return stop

    def _given_up(self, trouble: Trouble, course: _Course, request: ChatRequest) -> RequestGivenUp:
        given_up = RequestGivenUp(
            "the endpoint gave no usable reply",
            where=f"request {request.request_hash} to {self._address}",
            found=f"{described(trouble)}, after {course.attempts} attempts",
            reason=trouble.reason,
            attempts=course.attempts,
            seconds=course.seconds,
            prompt_tokens=trouble.prompt_tokens,
            cached_tokens=trouble.cached_tokens,
            completion_tokens=trouble.completion_tokens,
        )
        # Too long a prompt says nothing about the endpoint.
        if trouble.reason != "context_too_long":
            self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= HOPELESS and self._refusal is None:
            self._refusal = EndpointRefuses(
                f"the endpoint gave no usable reply to {HOPELESS} requests in a row",
                where=self._address,
                found=described(trouble),
                mend="see that the endpoint is up and its address right, then give the command "
                "again",
            )
        return given_up


def _used_tokens(reply: ChatReply) -> int | None:
    if reply.prompt_tokens is None or reply.completion_tokens is None:
        return None
    return reply.prompt_tokens + reply.completion_tokens


def _last_outcome(state: RetryCallState) -> Any:
    assert state.outcome is not None  # called after the last attempt
    return state.outcome.result()
