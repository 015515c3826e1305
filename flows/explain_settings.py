"""How labels are written, and how a language model is asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from .config_section import Positive, Section, Share
from .config_text import problem
from .endpoint_settings import EndpointSection

if TYPE_CHECKING:
    from ..label.batch_client import BatchClient
    from ..label.labelling import Asking

Explainer = Literal["token_lookup", "max_activations", "highlighted", "with_logits", "output"]
EMBEDDED_EXPLAINERS: frozenset[str] = frozenset({"token_lookup"})
"""The explainers that need no model."""


class ChatSection(EndpointSection):
    """The language model that writes labels."""

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
    batch: bool = Field(
        default=False,
        description="ask in batches, at half the price: within a day the endpoint answers, and "
        "`scopenote explain RUN` brings in what is done",
    )

    def batch_client(self, base_url: str | None = None) -> BatchClient:
        """The client of the endpoint's batches, or of another endpoint's."""
        from ..label.batch_client import BatchClient
        from ..label.endpoint_client import Patience

        patience = Patience(attempt_seconds=self.timeout_seconds)
        return BatchClient(base_url or self.base_url, patience)


class AgainSection(Section):
    """What a model is asked again, when the command is given again."""

    changed: Share = Field(
        default=0.0,
        description="features of which more than this share of the contexts shown would be new; "
        "1: none",
    )
    below: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None,
        description="features whose best label scores lower on `select`: one more candidate each",
    )
    candidates: Positive = Field(
        default=5, description="but no more of them than this, however low they score"
    )


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
    again: AgainSection = AgainSection()
    chat: ChatSection = ChatSection()

    @property
    def n_labels(self) -> int:
        """Labels that a feature may come to have on the same contexts from one explainer."""
        return self.candidates if self.again.below is None else self.again.candidates

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
        if self.n_labels > 1 and self.chat.temperature == 0:
            raise problem(
                "`chat.temperature` above 0 for several candidates, which would be all alike",
                found=f"{self.n_labels} candidates",
            )
        if self.again.below is not None and self.again.candidates <= self.candidates:
            raise problem(
                "`again.candidates` greater than `candidates` where `again.below` asks for more",
                found=f"{self.again.candidates} and {self.candidates}",
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
            temperature = 0.0 if self.n_labels == 1 else 1.0
        return Asking(
            model=self.chat.model,
            temperature=temperature,
            max_reply_tokens=self.chat.max_reply_tokens,
            context_tokens=self.chat.context_tokens,
        )
