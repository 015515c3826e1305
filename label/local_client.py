"""A language model in this process as a chat client: requests that wait are answered together.

A thread of its own loads the model and computes, so that the event loop stays free. What one batch
does is in `generation.py`. Left out: several GPUs, and holding replies to a JSON schema.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event
from types import TracebackType

from jinja2 import TemplateError

from ..store.errors import EndpointRefuses, RequestGivenUp
from .chat import ChatReply, ChatRequest, Reason
from .endpoint_client import HOPELESS
from .generation import Draft, write_replies
from .local_model import LocalModel, load_local_model
from .prefix_cache import PrefixCache

# So long a batch that is not full waits for company: nothing beside the seconds that it takes.
_GATHERING_SECONDS = 0.02

log = logging.getLogger(__name__)

_Outcome = ChatReply | RequestGivenUp


@dataclass(frozen=True, slots=True)
class _Asked:
    request: ChatRequest
    outcome: asyncio.Future[_Outcome]


class LocalClient:
    """A chat client (`ChatClient`) that computes the replies itself: `async with`, in one loop.

    A reply depends on its request alone, but for rounding: at temperature 0 each token is the
    likeliest, above it each is drawn by a generator that begins with the request's hash. It ends
    with a token by which the model ends a turn or a text, which is not counted, or at
    `max_tokens`. The form that a request asks for is not enforced. Log probabilities are the
    model's own, whatever the temperature. The `seconds` of a reply are those of its batch.

    Args:
        model: hub id or folder.
        device: a torch device, or `auto` for the first GPU if there is one.
        batch_size: replies written together at most; fewer once they did not fit into memory.

    Raises:
        ModelError: on entering, where the model cannot be used.
    """

    def __init__(self, model: str, device: str = "auto", batch_size: int = 32) -> None:
        self._name = model
        self._device = device
        self._batch_size = batch_size
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="local-model")
        self._stopping = Event()
        self._model: LocalModel | None = None
        self._prefixes: PrefixCache | None = None
        self._waiting: deque[_Asked] = deque()
        self._under_way: list[_Asked] = []
        self._answering: asyncio.Task[None] | None = None
        self._too_large_in_a_row = 0
        self._refusal: EndpointRefuses | None = None

    def __repr__(self) -> str:
        return f"LocalClient({self._name!r})"

    async def __aenter__(self) -> LocalClient:
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(
                self._worker, load_local_model, self._name, self._device
            )
        except BaseException:
            self._worker.shutdown(wait=False)
            raise
        self._model = model
        self._prefixes = PrefixCache(model.network, model.layout.beginning)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancels whatever waits for a reply, and lets go of the model."""
        self._stopping.set()
        for asked in [*self._under_way, *self._waiting]:
            asked.outcome.cancel()
        self._waiting.clear()
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)
        await asyncio.to_thread(self._worker.shutdown)
        self._model = self._prefixes = None

    @property
    def lacking(self) -> Mapping[str, str]:
        """Nothing that it finds out by being asked."""
        return {}

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The model's reply.

        Raises:
            RequestGivenUp: with its reply the prompt is longer than the model's context, its
                template does not take it, or it alone does not fit into the device's memory.
            EndpointRefuses: that was so of `HOPELESS` requests in a row.
        """
        assert self._model is not None, "for use within `async with`"
        loop = asyncio.get_running_loop()
        asked = _Asked(request, loop.create_future())
        self._waiting.append(asked)
        if self._answering is None or self._answering.done():
            self._answering = loop.create_task(self._answer_all())
        outcome = await asked.outcome
        if isinstance(outcome, RequestGivenUp):
            raise outcome
        return outcome

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if len(self._waiting) < self._batch_size:
                await asyncio.sleep(_GATHERING_SECONDS)
            self._under_way = self._next_batch()
            if self._refusal is not None:
                for asked in self._under_way:
                    # A copy: one object would gather the tracebacks of all.
                    asked.outcome.set_exception(replace(self._refusal))
                continue
            if not self._under_way:
                continue
            requests = [asked.request for asked in self._under_way]
            try:
                outcomes = await loop.run_in_executor(self._worker, self._answer, requests)
            except Exception as error:
                # Whoever asked gets it: raised here it would be lost, and they would wait for ever.
                for asked in self._under_way:
                    if not asked.outcome.done():
                        asked.outcome.set_exception(error)
                continue
            for asked, outcome in zip(self._under_way, outcomes, strict=True):
                self._note(outcome)
                if not asked.outcome.done():
                    asked.outcome.set_result(outcome)

    def _next_batch(self) -> list[_Asked]:
        batch: list[_Asked] = []
        while self._waiting and len(batch) < self._batch_size:
            asked = self._waiting.popleft()
            if not asked.outcome.done():  # else whoever asked has given up
                batch.append(asked)
        return batch

    def _note(self, outcome: _Outcome) -> None:
        if isinstance(outcome, ChatReply):
            self._too_large_in_a_row = 0
        elif outcome.reason == "out_of_memory":
            self._too_large_in_a_row += 1
        if self._too_large_in_a_row >= HOPELESS and self._refusal is None:
            self._refusal = EndpointRefuses(
                f"the device's memory was too small for {HOPELESS} requests in a row",
                where=self._name,
                found=outcome.found if isinstance(outcome, RequestGivenUp) else None,
                mend="name a smaller model, set a smaller `context_tokens`, or end what else uses "
                "the device",
            )

    # --- in the worker's thread ---------------------------------------------------------------

    def _answer(self, requests: Sequence[ChatRequest]) -> list[_Outcome]:
        began = time.monotonic()
        begun = [self._draft(request) for request in requests]
        too_large = self._write([each for each in begun if isinstance(each, Draft)])
        seconds = time.monotonic() - began
        outcomes: list[_Outcome] = []
        for each in begun:
            if isinstance(each, RequestGivenUp):
                outcomes.append(each)
            elif (said := too_large.get(id(each))) is not None:
                found = f"no room for {len(each.prompt):,} tokens of prompt and a reply: {said}"
                outcomes.append(self._given_up(each.request, "out_of_memory", found, seconds))
            else:
                outcomes.append(self._reply(each, seconds))
        return outcomes

    def _draft(self, request: ChatRequest) -> Draft | RequestGivenUp:
        assert self._model is not None, "entered"
        try:
            prompt = self._model.layout.token_ids(request.messages)
        except (TemplateError, ValueError) as error:
            found = f"the model's chat template does not take this: {error}"
            return self._given_up(request, "bad_request", found)
        limit = self._model.context_tokens
        if limit is not None and len(prompt) + request.max_tokens > limit:
            found = (
                f"{len(prompt):,} tokens of prompt and up to {request.max_tokens:,} of reply, of "
                f"{limit:,} that the model takes"
            )
            return self._given_up(request, "context_too_long", found)
        return Draft(request, prompt)

    def _write(self, drafts: Sequence[Draft]) -> dict[int, str]:
        """Finishes drafts, as many at once as memory allows.

        Returns:
            By `id`, what was said of those for which there was too little of it.
        """
        import torch

        assert self._model is not None and self._prefixes is not None, "entered"
        too_large: dict[int, str] = {}
        left = deque(drafts)
        while left:
            batch = [left.popleft() for _ in range(min(len(left), self._batch_size))]
            said: str | None = None
            try:
                write_replies(self._model, self._prefixes, batch, self._stopping)
            except torch.OutOfMemoryError as error:
                said = str(error).splitlines()[0] if str(error) else "out of memory"
            if said is None:
                continue
            # Out here the frames that held on to memory are gone.
            torch.cuda.empty_cache()
            unfinished = [draft for draft in batch if draft.finish_reason is None]
            if len(batch) == 1:
                too_large[id(batch[0])] = said
                self._prefixes.clear()
                continue
            self._batch_size = len(batch) // 2
            log.warning(
                "%s: no memory for %d replies at once, goes on with %d: %s",
                self._name, len(batch), self._batch_size, said,
            )  # fmt: skip
            for draft in unfinished:
                draft.begin_again()
            left.extendleft(reversed(unfinished))
        return too_large

    def _reply(self, draft: Draft, seconds: float) -> ChatReply:
        assert self._model is not None, "entered"
        return ChatReply(
            text=self._model.layout.text_of(draft.written) or None,
            finish_reason=draft.finish_reason,
            refusal=None,
            logprobs=None if draft.request.top_logprobs is None else tuple(draft.logprobs),
            prompt_tokens=len(draft.prompt),
            cached_tokens=draft.cached_tokens,
            completion_tokens=len(draft.written),
            model=self._name,
            seconds=seconds,
            attempts=1,
        )

    def _given_up(
        self, request: ChatRequest, reason: Reason, found: str, seconds: float = 0.0
    ) -> RequestGivenUp:
        return RequestGivenUp(
            "the local model gave no reply",
            where=f"request {request.request_hash} to {self._name}",
            found=found,
            reason=reason,
            attempts=1,
            seconds=seconds,
            prompt_tokens=0,
            cached_tokens=0,
            completion_tokens=0,
        )
