"""OpenAI's Batch API: files of requests go out, and files of results come back within a day.

One thread, one thing at a time: a night's work is a few files. HTTP is the `openai` package's with
its own retries off, as in `endpoint_client.py`. Files are streamed both ways. Left out: what stands
in the lines (`batch_lines.py`), and the record of batches (`store/batch_record.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_result, wait_random_exponential

from ..store.errors import EndpointRefuses
from .batch_lines import ENDPOINT
from .completion import is_web_page
from .endpoint_access import ApiKey, endpoint_address
from .endpoint_client import Patience
from .endpoint_trouble import (
    Trouble,
    described,
    no_answer,
    refusal_by_status,
    refusal_of_all,
)
from .provider_batch import BatchAnswer, BatchListAnswer, FileAnswer, ProviderBatch

# What a batch carries, so that it is found again by who died before learning what it is called.
_OUR_ID = "scopenote_batch"
_IN_A_LIST = 100
_CHUNK_BYTES = 1 << 18

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class BatchClient:
    """The Batch API at one address; a context manager.

    The key is read from the environment (`OPENAI_API_KEY`), as in `OpenAIClient`.

    Args:
        base_url: the endpoint's address up to `/v1`; None for `OPENAI_BASE_URL` or else OpenAI.
        patience: how often and how long each exchange is tried; its `attempt_seconds` bound each
            wait for the provider and not whole files.

    Raises:
        ConfigurationError: the address is none, or the key is missing or cannot be one.
    """

    def __init__(self, base_url: str | None, patience: Patience | None = None) -> None:
        from openai import OpenAI  # half a second, for those who need it

        self._patience = patience or Patience()
        self.address = endpoint_address(base_url)
        self._key = ApiKey.from_environment(self.address)
        self._api = OpenAI(
            api_key=self._key.for_header,
            base_url=self.address,
            max_retries=0,
            timeout=self._patience.attempt_seconds,
        )

    def __repr__(self) -> str:
        return f"BatchClient({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._api.close()

    def submit(self, batch_id: str, requests: Path, may_exist: bool) -> ProviderBatch:
        """Sends a file of requests and has a batch made of it; never a second one.

        Whenever an attempt may have had a consequence that was not seen, the provider is asked for
        the batch before it is made again.

        Args:
            batch_id: ours, which the batch carries; of no other batch.
            requests: lines by `request_line`.
            may_exist: someone may have submitted it before.

        Raises:
            BatchRefused: the provider does not take it, and nothing came of it.
            EndpointRefuses: it cannot be reached, or refuses the key or the credit.
        """
        if may_exist and (found := self.find(batch_id)) is not None:
            return found
        with requests.open("rb") as file:
            named = (f"{batch_id}.jsonl", file, "application/jsonl")
            upload = self._api.files.with_raw_response.create
            send = partial(upload, file=named, purpose="batch")
            sent = self._ask(FileAnswer, send, BatchRefused)
        create = self._api.batches.with_raw_response.create
        was_tried = False

        def make_or_find() -> ProviderBatch | Trouble:
            nonlocal was_tried
            if was_tried and (found := self.find(batch_id)) is not None:
                return found
            was_tried = True
            made = self._exchange(
                BatchAnswer,
                lambda: create(
                    completion_window="24h",
                    endpoint=ENDPOINT,
                    input_file_id=sent.id,
                    metadata={_OUR_ID: batch_id},
                ),
            )
            return made if isinstance(made, Trouble) else made.as_batch()

        return self._patiently(make_or_find, BatchRefused)

    def find(self, batch_id: str) -> ProviderBatch | None:
        """The batch that carries this id of ours, among all that the provider has."""
        list_batches = self._api.batches.with_raw_response.list
        after: dict[str, Any] = {}
        while True:
            page = partial(list_batches, limit=_IN_A_LIST, **after)
            listed = self._ask(BatchListAnswer, page)
            for batch in listed.data:
                if (batch.metadata or {}).get(_OUR_ID) == batch_id:
                    return self.retrieve(batch.id)
            if not listed.data or listed.has_more is False:
                return None
            after = {"after": listed.data[-1].id}

    def retrieve(self, provider_id: str) -> ProviderBatch:
        """How a batch stands.

        Raises:
            BatchRefused: the provider does not know it.
            EndpointRefuses: it cannot be reached, or refuses the key.
        """
        retrieve = self._api.batches.with_raw_response.retrieve
        return self._ask(BatchAnswer, partial(retrieve, provider_id), BatchRefused).as_batch()

    def download(self, file_id: str, to: Path) -> bool:
        """Fetches a file of results, all of it or nothing; the key is struck out of its lines.

        Returns:
            Whether there is such a file: a provider keeps them for some weeks.

        Raises:
            EndpointRefuses: the provider does not give it, or cannot be reached.
        """
        unfinished = to.with_name(f".{to.name}.unfinished")

        def fetch() -> Trouble | bool:
            trouble = self._stream(file_id, unfinished)
            if trouble is None:
                os.replace(unfinished, to)
                return True
            return False if trouble.status == 404 else trouble

        return self._patiently(fetch)

    # --- one exchange ---------------------------------------------------------------------

    def _stream(self, file_id: str, to: Path) -> Trouble | None:
        content = self._api.files.with_streaming_response.content

        def write() -> None:
            with content(file_id) as answer, to.open("wb") as file:
                rest = b""
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    whole, newline, rest = (rest + chunk).rpartition(b"\n")
                    file.write(self._key.struck_out_of(whole + newline))
                file.write(self._key.struck_out_of(rest))

        done = self._caught(write)
        return done if isinstance(done, Trouble) else None

    def _exchange(self, form: type[M], send: Callable[[], Any]) -> M | Trouble:
        answer = self._caught(send)
        if isinstance(answer, Trouble):
            return answer
        body = self._key.struck_out_of(answer.http_response.content)
        try:
            return form.model_validate_json(body)
        except ValidationError:
            if is_web_page(body):
                return Trouble("web_page", "a web page instead of JSON", 200, passes=True)
            return Trouble("unreadable", f"{len(body)} bytes of another form", 200, passes=True)

    def _caught(self, send: Callable[[], T]) -> T | Trouble:
        """What is sent once. Exceptions end here: their requests carry the key."""
        from httpx2 import HTTPError
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            return send()
        except APITimeoutError:
            seconds = self._patience.attempt_seconds
            trouble = no_answer("timeout", f"no answer in {seconds:.3g} s")
        except APIStatusError as error:
            response = error.response
            content = self._key.struck_out_of(response.content)
            trouble = refusal_by_status(response.status_code, response.headers, content)
        except APIConnectionError as error:
            cause = error.__cause__ or error
            trouble = no_answer("connection", str(cause) or type(cause).__name__)
        except HTTPError as error:
            # While a file is streamed, the errors of the layer below come as they are.
            trouble = no_answer("connection", str(error) or type(error).__name__)
        message = self._key.struck_out_of(trouble.message.encode("utf-8", "replace"))
        return replace(trouble, message=message.decode())

    # --- as often as it takes -------------------------------------------------------------

    def _ask(
        self,
        form: type[M],
        send: Callable[[], Any],
        refusal: type[EndpointRefuses] = EndpointRefuses,
    ) -> M:
        return self._patiently(lambda: self._exchange(form, send), refusal)

    def _patiently(
        self,
        attempt: Callable[[], T | Trouble],
        refusal: type[EndpointRefuses] = EndpointRefuses,
    ) -> T:
        """Tries until there is an answer.

        Raises:
            EndpointRefuses: the key or the credit is refused, or patience ended; where the endpoint
                refuses just this, as `refusal`.
        """
        began = time.monotonic()
        backoff = wait_random_exponential(
            multiplier=self._patience.first_backoff_seconds,
            max=self._patience.longest_backoff_seconds,
        )

        def wait(state: RetryCallState) -> float:
            return (_outcome(state).wait_seconds or 0.0) + backoff(state)

        def stop(state: RetryCallState) -> bool:
            seconds = time.monotonic() - began + state.upcoming_sleep
            is_last = state.attempt_number >= self._patience.attempts
            return is_last or seconds >= self._patience.total_seconds

        retrying = Retrying(
            wait=wait,
            stop=stop,
            retry=retry_if_result(lambda outcome: isinstance(outcome, Trouble) and outcome.passes),
            retry_error_callback=_outcome,
        )
        outcome = retrying(attempt)
        if not isinstance(outcome, Trouble):
            return outcome
        if outcome.refused in ("key", "credit"):
            raise refusal_of_all(outcome.refused, outcome, self.address, bool(self._key))
        if outcome.passes:
            raise EndpointRefuses(
                "the provider of batches gives no answer",
                where=self.address,
                found=described(outcome),
                mend="give the command again later: what was submitted is not lost",
            )
        raise refusal(
            "the endpoint refuses this of its Batch API, or has none",
            where=self.address,
            found=described(outcome),
            mend="see that OPENAI_API_KEY is of the project that submitted the batches; for an "
            "endpoint without a Batch API, `batch = false` under [explain.chat]",
        )


class BatchRefused(EndpointRefuses):
    """The provider refuses this one thing, and nothing came of it."""


def _outcome(state: RetryCallState) -> Any:
    assert state.outcome is not None  # called after an attempt
    return state.outcome.result()
