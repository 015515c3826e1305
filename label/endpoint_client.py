"""What clients of an endpoint have in common: sending, waiting, sending again, giving up.

HTTP is the `openai` package's, with its own retries off: tenacity alone sends again what may
succeed a little later, so that attempts and seconds have one cap each and every sending takes its
turn (`call_limits.py`). What endpoints answer when they do not answer is judged in
`endpoint_trouble.py`. Left out: what is asked, and how an answer is read.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from ..store.errors import EndpointRefuses, RequestGivenUp
from .call_limits import CallLimits
from .completion import UnusableAnswer
from .endpoint_access import ApiKey, endpoint_address
from .endpoint_trouble import (
    Trouble,
    described,
    no_answer,
    refusal_by_status,
    refusal_of_all,
    trouble_of_answer,
)

# So many requests given up on, one after the other and whatever the reason: no other will fare
# better. By chance it does not happen: each was sent several times.
HOPELESS = 20

R = TypeVar("R")


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
class Course:
    """How far one request is."""

    attempts: int = 0
    seconds: float = 0.0

    async def rest(self, seconds: float) -> None:
        """Waits, and counts that."""
        await asyncio.sleep(seconds)
        self.seconds += seconds


class EndpointClient(ABC, Generic[R]):
    """Asks one endpoint over HTTP, for use in one event loop: `async with`.

    The key is read from the environment (`OPENAI_API_KEY`); it is nowhere but in the requests'
    header, and struck out of whatever an endpoint says about it. Endpoints of one's own need none.

    Args:
        base_url: the endpoint's address up to `/v1`; None for `OPENAI_BASE_URL` or else OpenAI.
        limits: shared by all clients of one endpoint in this process.
        patience: how long each request is tried.

    Raises:
        ConfigurationError: the address is none, or the key is missing or cannot be one.
    """

    _path: ClassVar[str]

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
        self._create = partial(self._endpoint.post, self._path, cast_to=Response)
        self._limits = limits
        self._backoff = wait_random_exponential(
            multiplier=self._patience.first_backoff_seconds,
            max=self._patience.longest_backoff_seconds,
        )
        self._refusal: EndpointRefuses | None = None
        self._given_up_in_a_row = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._endpoint.close()

    @abstractmethod
    def _read(self, content: bytes, course: Course, body: dict[str, Any]) -> R | UnusableAnswer:
        """The reply in an answer with status 200 to what was sent."""

    @abstractmethod
    def _used_tokens(self, reply: R) -> int | None:
        """What a reply was charged for, where the endpoint says."""

    async def _patiently(
        self, name: str, attempt: Callable[[Course], Awaitable[R | Trouble | EndpointRefuses]]
    ) -> R:
        """The reply that attempts at a request come to, after as many as patience allows.

        Args:
            name: of the request.
            attempt: sends it once.

        Raises:
            RequestGivenUp: this request has no usable reply.
            EndpointRefuses: no request will have one: wrong key, no credit, no such model, or
                `HOPELESS` requests in a row were given up on. Nothing is sent from then on.
        """
        course = Course()
        retrying = AsyncRetrying(
            sleep=course.rest,
            wait=self._wait,
            stop=self._stop_for(course),
            retry=retry_if_result(lambda outcome: isinstance(outcome, Trouble) and outcome.passes),
            retry_error_callback=_last_outcome,
        )
        outcome: R | Trouble | EndpointRefuses = await retrying(attempt, course)
        if isinstance(outcome, EndpointRefuses):
            raise replace(outcome)  # a copy: one object would gather the tracebacks of all
        if isinstance(outcome, Trouble):
            raise self._given_up(outcome, course, name)
        self._given_up_in_a_row = 0
        return outcome

    async def _send(
        self, body: dict[str, Any], n_tokens: int, course: Course
    ) -> R | Trouble | EndpointRefuses:
        async with self._limits.turn() as turn:
            # Before booking, so that those who queue up do not wait out their minute for nothing.
            if self._refusal is None:
                await turn.book(n_tokens)
            if self._refusal is not None:
                return self._refusal
            course.attempts += 1
            outcome = await self._exchange(body, course)
            if not isinstance(outcome, Trouble):
                turn.settle(self._used_tokens(outcome))
                return outcome
            if outcome.reason == "rate_limited":
                turn.too_much()
        if outcome.refused is not None:
            where = f"{self._address}, model {body['model']}"
            refusal = refusal_of_all(outcome.refused, outcome, where, bool(self._key))
            self._refusal = self._refusal or refusal
            return self._refusal
        return outcome

    async def _exchange(self, body: dict[str, Any], course: Course) -> R | Trouble:
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
            outcome = self._read(content, course, body)
            if not isinstance(outcome, UnusableAnswer):
                return outcome
            trouble = trouble_of_answer(outcome)
        # Again, for what JSON had written with escapes, and for causes of broken connections.
        message = self._key.struck_out_of(trouble.message.encode("utf-8", "replace"))
        return replace(trouble, message=message.decode())

    def _wait(self, state: RetryCallState) -> float:
        assert state.outcome is not None  # tenacity waits only after an attempt
        asked: float = state.outcome.result().wait_seconds or 0.0
        # On top of what is asked for: all who were told the same would come back together.
        return asked + self._backoff(state)

    def _stop_for(self, course: Course) -> Callable[[RetryCallState], bool]:
        def stop(state: RetryCallState) -> bool:
            is_last = state.attempt_number >= self._patience.attempts
            return is_last or course.seconds + state.upcoming_sleep >= self._patience.total_seconds

        return stop

    def _given_up(self, trouble: Trouble, course: Course, name: str) -> RequestGivenUp:
        given_up = RequestGivenUp(
            "the endpoint gave no usable reply",
            where=f"request {name} to {self._address}",
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


def _last_outcome(state: RetryCallState) -> Any:
    assert state.outcome is not None  # called after the last attempt
    return state.outcome.result()
