"""Where a language model answers, and how fast it is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from .config_section import Device, Positive, Section, Text
from .config_text import problem

if TYPE_CHECKING:
    from ..label.call_limits import CallLimits
    from ..label.chat import ChatClient
    from ..label.pricing import Prices


class EndpointSection(Section):
    """A language model that is asked, at an endpoint or in this process."""

    model: Text | None = Field(
        default=None, description='its name at the endpoint, such as "gpt-4o-mini"'
    )
    local: bool = Field(
        default=False,
        description="the model runs in this process, with transformers; `model` is then a hub id "
        "or a folder",
    )
    device: Device = Field(
        default="auto", description="where a local model runs: as `device` under [model]"
    )
    base_url: Text | None = Field(
        default=None,
        description="the endpoint's address, mostly up to /v1; by default OPENAI_BASE_URL, or "
        "else OpenAI's. The key is read from OPENAI_API_KEY",
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=120, description="how long the endpoint may take for one answer"
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
        idle = [name for name in meant_for_endpoints if getattr(self, name, None)]
        if self.local and idle:
            raise problem(
                "`local` only where no endpoint is asked",
                found=f"local = true beside {' and '.join(idle)}",
            )
        if self.device != "auto" and not self.local:
            raise problem("`device` only beside `local = true`", found=f"device = {self.device!r}")
        return self

    def known_prices(self) -> Prices:
        """The prices that Scopenote brings and the user's own; what runs here is free."""
        from ..label.pricing import FREE, load_prices

        prices = load_prices(None if self.prices is None else Path(self.prices))
        return {**prices, self.model: FREE} if self.local and self.model is not None else prices

    def client(self, n_clients: int = 1) -> AbstractAsyncContextManager[ChatClient]:
        """The model in this process, or the endpoint's client, with the environment's key.

        Args:
            n_clients: how many processes have one, which share the limits.
        """
        if self.local:
            from ..label.local_client import LocalClient

            assert self.model is not None, "the configuration was validated"
            return LocalClient(self.model, self.device, self.concurrency)
        from ..label.endpoint_client import Patience
        from ..label.openai_client import OpenAIClient

        patience = Patience(attempt_seconds=self.timeout_seconds)
        return OpenAIClient(self.base_url, self._limits(n_clients), patience)

    def located(self, local_path: Callable[[str], str], file: Callable[[str], str]) -> Self:
        """The same with the paths in it made absolute.

        Args:
            local_path: of a model, which may also be the hub's.
            file: of a file.
        """
        changed = {}
        if self.prices is not None:
            changed["prices"] = file(self.prices)
        if self.local and self.model is not None:
            changed["model"] = local_path(self.model)
        return self.model_copy(update=changed)

    def _limits(self, n_clients: int) -> CallLimits:
        from ..label.call_limits import CallLimits

        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        return CallLimits(
            max(1, self.concurrency // n_clients),
            None if requests is None else requests / n_clients,
            None if tokens is None else tokens / n_clients,
        )
