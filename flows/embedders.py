"""What makes vectors of texts: a model in this process, or one at an endpoint, on the record."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..label.budget import Allowance, Budget
from ..store.errors import RequestGivenUp, ScopenoteError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    Vector = Float32[np.ndarray, " D"]
    from ..label.embedding_client import EmbeddingClient, EmbeddingReply, EmbeddingRequest
    from ..label.sentence_model import SentenceModel
    from ..store.journal import Journal
    from ..store.records import Call
    from .search_settings import SearchSection

# Texts in a call, and bytes of them: endpoints take up to 2,048 texts and 300,000 tokens.
_TEXTS, _BYTES = 256, 200_000


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def model(self) -> str:
        """How its vectors are marked."""

    def embed(self, texts: Sequence[str]) -> list[Vector | ScopenoteError]:
        """A vector of length 1 for each text, or why there is none."""


@dataclass(frozen=True)
class LocalEmbedder:
    """A sentence model in this process, loaded when it is first needed.

    Attributes:
        folder: or hub id; None for that of the extra `search`.
    """

    model: str
    folder: str | None
    device: str

    @cached_property
    def _loaded(self) -> SentenceModel:
        from ..label.sentence_model import load_sentence_model

        return load_sentence_model(self.folder, self.device)

    def embed(self, texts: Sequence[str]) -> list[Vector | ScopenoteError]:
        """A vector of length 1 for each text.

        Raises:
            ModelError: the model cannot be used.
        """
        return list(self._loaded.encode(texts))


@dataclass(frozen=True)
class EndpointEmbedder:
    """A model at an endpoint; each call is in the journal before its vectors are used.

    The journal has what was asked and what it cost; the vectors themselves are with the labels.

    Attributes:
        settings: which model, and where; it is named.
        journal: the run's folder of journals.
        budget: what calls may cost; None for no limit.
        allowance: how many may be made, and until when.
    """

    settings: SearchSection
    journal: Path
    budget: Budget | None = None
    allowance: Allowance = field(default_factory=Allowance)

    @property
    def model(self) -> str:
        """How its vectors are marked: as the endpoint calls it."""
        assert self.settings.model is not None, "made where one is named"
        return self.settings.model

    def embed(self, texts: Sequence[str]) -> list[Vector | ScopenoteError]:
        """A vector of length 1 for each text, or what the call ended with that it was in.

        Raises:
            ConfigurationError: the endpoint's address is none, or the key is missing.
        """
        return asyncio.run(self._embed(texts))

    async def _embed(self, texts: Sequence[str]) -> list[Vector | ScopenoteError]:
        from ..label.embedding_client import EmbeddingRequest
        from ..store.journal import Journal

        pieces = list(_pieces(texts))
        with Journal(self.journal) as journal:
            async with self.settings.embedding_client() as client:
                requests = [EmbeddingRequest(self.model, tuple(piece)) for piece in pieces]
                answers = await asyncio.gather(
                    *(self._ask(request, client, journal) for request in requests)
                )
        found: list[Vector | ScopenoteError] = []
        for piece, answer in zip(pieces, answers, strict=True):
            found += [answer] * len(piece) if isinstance(answer, ScopenoteError) else [*answer]
        return found

    async def _ask(
        self, request: EmbeddingRequest, client: EmbeddingClient, journal: Journal
    ) -> Float32[np.ndarray, "N D"] | ScopenoteError:
        try:
            most_usd = await self._reserve(request)
        except ScopenoteError as error:
            return error
        usd: Decimal | None = Decimal(0)
        try:
            reply = await client.embed(request)
            call = self._record(request, reply)
            usd = call.usd
            journal.append(call)
            return reply.vectors
        except RequestGivenUp as error:
            call = self._record(request, error)
            usd = call.usd
            journal.append(call)
            return error
        except ScopenoteError as error:
            return error
        finally:
            if self.budget is not None:
                self.budget.settle(most_usd, usd)

    async def _reserve(self, request: EmbeddingRequest) -> Decimal:
        """Dollars kept for a call, once there is room for it."""
        self.allowance.require_time()
        most_usd = Decimal(0)
        if self.budget is not None:
            n_bytes = sum(len(text.encode("utf-8", "replace")) for text in request.texts)
            price = self.settings.known_prices()[request.model]
            most_usd = price.most(n_bytes + 2 * len(request.texts), 0)
            while not self.budget.reserve(most_usd):
                await asyncio.sleep(0.05)
        try:
            self.allowance.take_call()
        except ScopenoteError:
            if self.budget is not None:
                self.budget.settle(most_usd, Decimal(0))
            raise
        return most_usd

    def _record(self, request: EmbeddingRequest, came: EmbeddingReply | RequestGivenUp) -> Call:
        from ..label.call_records import CallRecords
        from ..store.records import RecordedRequest

        records = CallRecords(self.settings.known_prices(), "embed")
        recorded = RecordedRequest(request.request_hash, request.as_dict(), 0)
        if isinstance(came, RequestGivenUp):
            return records.failure(recorded, came)
        content = {"model": came.model, "vectors": len(came.vectors), "of": came.vectors.shape[1]}
        used = (came.prompt_tokens, None, 0)
        return records.call(recorded, content, None, used, came.seconds, came.attempts)


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts as calls take them."""
    piece: list[str] = []
    n_bytes = 0
    for text in texts:
        size = len(text.encode("utf-8", "replace"))
        if piece and (len(piece) == _TEXTS or n_bytes + size > _BYTES):
            yield piece
            piece, n_bytes = [], 0
        piece.append(text)
        n_bytes += size
    if piece:
        yield piece
