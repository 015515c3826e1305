"""How labels are scored, and by which language model where one judges them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .config_section import Count, Positive, Section, Seed
from .config_text import problem
from .endpoint_settings import EndpointSection

Simulator = Literal["token_lookup", "chat"]


class JudgeSection(EndpointSection):
    """The language model that predicts activations from labels, a call a window."""

    active_windows: Positive = Field(
        default=30, description="windows in which the feature fires, per label"
    )
    silent_windows: Positive = Field(
        default=60, description="windows in which it does not, per label"
    )
    shuffled_labels: Count = Field(
        default=20,
        description="so many features are rated once more, under another feature's label",
    )


class ScoreSection(Section):
    """How labels are scored."""

    simulators: Annotated[tuple[Simulator, ...], Field(strict=False, min_length=1)] = Field(
        default=("token_lookup",),
        description="each predicts activations from labels: token_lookup from its own, chat asks "
        "a model about those in words",
    )
    resamples: Annotated[int, Field(ge=100)] = Field(
        default=1000, description="bootstrap resamples behind an interval"
    )
    level: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.95, description="how often an interval should hold the truth"
    )
    seed: Seed = Field(default=0, description="draws the resamples and the random windows")
    features_per_task: Positive = Field(default=128, description="features in one task")
    chat: JudgeSection = JudgeSection()

    @property
    def simulator_names(self) -> tuple[str, ...]:
        """What the scores are stored under."""
        return tuple(
            f"{name}/{self.chat.model}" if name == "chat" else name for name in self.simulators
        )

    @model_validator(mode="after")
    def _can_ask(self) -> Self:
        if "chat" in self.simulators and self.chat.model is None:
            raise problem("`chat.model` where a simulator asks a model", found="chat")
        return self
