"""How labels are written, and how a language model is asked for them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from .config_section import Positive, Section, Text
from .config_text import problem

if TYPE_CHECKING:
    from ..label.batch_client import BatchClient
    from ..label.call_limits import CallLimits
    from ..label.chat import ChatClient
    from ..label.labelling import Asking
    from ..label.pricing import Prices

Explainer = Literal["token_lookup", "max_activations", "highlighted", "with_logits", "output"]
EMBEDDED_EXPLAINERS: frozenset[str] = frozenset({"token_lookup"})
"""The explainers that need no model."""


class ChatSection(Section):
    """The language model that is asked."""

    model: Text | None = Field(
        default=None, description='its name at the endpoint, such as "gpt-4o-mini"'
    )
    local: bool = Field(
        default=False,
        description="the model runs in this process, with transformers; `model` is then a hub id "
        "or a folder",
    )
    base_url: Text | None = Field(
        default=None,
        description="the endpoint's address, mostly up to /v1; by default OPENAI_BASE_URL, or "
        "else OpenAI's. The key is read from OPENAI_API_KEY",
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="by default 0 for one candidate, 1 for several"
    )
    max_reply_tokens: Positive = Field(
        default=500, description="a reply is cut off after so many tokens"
    )
    context_tokens: Positive | None = Field(
        default=None,
        description="what the model takes, prompt and reply together: contexts are left out from "
        "the end until that fits",
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=120, description="how long the endpoint may take for one answer"
    )
    batch: bool = Field(
        default=False,
        description="ask in batches, at half the price: within a day the endpoint answers, and "
        "`scopenote explain RUN` brings in what is done",
    )
    concurrency: Positive = Field(
        default=32, description="calls at once; of a local model, replies written together"
    )
    requests_per_minute: Positive | None = Field(
        default=None, description="calls in any minute, by default as many as can be made"
    )
    tokens_per_minute: Positive | None = Field(
        default=None, description="tokens in any minute, prompts and replies together"
    )
    prices: Text | None = Field(
        default=None, description="a table of prices of your own, a TOML file"
    )

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        meant_for_endpoints = ("base_url", "requests_per_minute", "tokens_per_minute", "batch")
        idle = [name for name in meant_for_endpoints if getattr(self, name)]
        if self.local and idle:
            raise problem(
                "`local` only where no endpoint is asked",
                found=f"local = true beside {' and '.join(idle)}",
            )
        return self

    def known_prices(self) -> Prices:
        """The prices that Scopenote brings and the user's own; what runs here is free."""
        from ..label.pricing import FREE, load_prices

        prices = load_prices(None if self.prices is None else Path(self.prices))
        return {**prices, self.model: FREE} if self.local and self.model is not None else prices

    def client(self) -> AbstractAsyncContextManager[ChatClient]:
        """The model in this process, or the endpoint's client, with the environment's key."""
        if self.local:
            from ..label.local_client import LocalClient

            assert self.model is not None, "the configuration was validated"
            return LocalClient(self.model, batch_size=self.concurrency)
        from ..label.openai_client import OpenAIClient, Patience

        patience = Patience(attempt_seconds=self.timeout_seconds)
        return OpenAIClient(self.base_url, self._limits(), patience)

    def batch_client(self, base_url: str | None = None) -> BatchClient:
        """The client of the endpoint's batches, or of another endpoint's."""
        from ..label.batch_client import BatchClient
        from ..label.openai_client import Patience

        patience = Patience(attempt_seconds=self.timeout_seconds)
        return BatchClient(base_url or self.base_url, patience)

    def _limits(self) -> CallLimits:
        from ..label.call_limits import CallLimits

        return CallLimits(self.concurrency, self.requests_per_minute, self.tokens_per_minute)


class ExplainSection(Section):
    """How labels are written."""

    explainers: Annotated[tuple[Explainer, ...], Field(strict=False, min_length=1)] = Field(
        default=("token_lookup",),
        description="each proposes a label for every feature; all but token_lookup ask a model",
    )
    candidates: Positive = Field(
        default=1, description="labels for a feature from each explainer that asks a model"
    )
    features: Positive | None = Field(
        default=None,
        description="a model is asked about so many features only, drawn from all that are active",
    )
    features_per_task: Positive = Field(default=256, description="features in one task")
    chat: ChatSection = ChatSection()

    @property
    def prompted(self) -> tuple[str, ...]:
        """The explainers that ask a model."""
        return tuple(name for name in self.explainers if name not in EMBEDDED_EXPLAINERS)

    @model_validator(mode="after")
    def _can_ask(self) -> Self:
        if self.prompted and self.chat.model is None:
            raise problem(
                "`chat.model` where an explainer asks a model", found=" and ".join(self.prompted)
            )
        if self.candidates > 1 and self.chat.temperature == 0:
            raise problem(
                "`chat.temperature` above 0 for several candidates, which would be all alike",
                found=f"{self.candidates} candidates",
            )
        if (fits := self.chat.context_tokens) is not None and fits <= self.chat.max_reply_tokens:
            raise problem(
                "`chat.context_tokens` greater than `chat.max_reply_tokens`",
                found=f"{fits} and {self.chat.max_reply_tokens}",
            )
        return self

    def asking(self) -> Asking:
        """How the model is asked; only where an explainer asks one."""
        from ..label.labelling import Asking

        assert self.chat.model is not None, "the configuration was validated"
        temperature = self.chat.temperature
        if temperature is None:
            temperature = 0.0 if self.candidates == 1 else 1.0
        return Asking(
            model=self.chat.model,
            temperature=temperature,
            max_reply_tokens=self.chat.max_reply_tokens,
            context_tokens=self.chat.context_tokens,
        )
