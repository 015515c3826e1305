"""How labels are scored, and by which language model where one judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from .config_section import Count, Positive, Section, Seed
from .config_text import problem
from .endpoint_settings import EndpointSection

if TYPE_CHECKING:
    from ..evaluate.looks import Looks

JudgeKind = Literal["chat", "chat_sparse", "local", "vllm"]
Simulator = Literal["token_lookup", "chat", "chat_sparse", "local", "vllm"]
Screen = Literal["none", "words_or_lookup", "chat_sparse"]
SecondOpinion = Literal["detection", "fuzzing", "discrimination"]


class JudgeSection(EndpointSection):
    """The language model that predicts activations from labels."""

    active_windows: Positive = Field(
        default=30, description="windows in which the feature fires, per label, at most"
    )
    silent_windows: Positive = Field(
        default=60, description="windows in which it does not, per label, at most"
    )
    screen: Screen = Field(
        default="none",
        description="which silent windows: drawn by hash, or half of them suspects in which the "
        "label's words occur or the token lookup fires, or those that chat_sparse finds",
    )
    screened_windows: Positive = Field(
        default=500, description="silent windows that a screen chooses from"
    )
    looks: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = Field(
        default=(1.0,),
        description="after which shares of the windows to see whether enough is known",
    )
    narrow: Annotated[float, Field(gt=0, lt=2)] | None = Field(
        default=None, description="enough is an interval no wider than this"
    )
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="or one that lies on one side of this"
    )
    shuffled_labels: Count = Field(
        default=20,
        description="so many features are rated once more, under another feature's label",
    )
    gold: bool = Field(
        default=True,
        description="each run also rates features that are known, to see how good the judge is",
    )
    second_opinions: Annotated[tuple[SecondOpinion, ...], Field(strict=False)] = Field(
        default=(), description="what else the model is asked about each label"
    )
    opinion_windows: Positive = Field(
        default=20, description="windows of each kind that it is then asked about"
    )

    @model_validator(mode="after")
    def _can_stop(self) -> Self:
        try:
            if len(self.looks) > 1:  # else NumPy need not be loaded for it
                self.looked_at()
        except ValueError as error:
            raise problem(
                "shares that rise from above 0 to 1, such as [0.25, 0.5, 1.0]",
                found=f"looks = {list(self.looks)}",
            ) from error
        if self.looks[-1] != 1.0:
            raise problem("shares that end with 1.0", found=f"looks = {list(self.looks)}")
        has_reason = self.narrow is not None or self.threshold is not None
        if has_reason != (len(self.looks) > 1):
            raise problem(
                "several `looks` together with `narrow` or `threshold`, or neither",
                found=f"looks = {list(self.looks)}, narrow = {self.narrow}, "
                f"threshold = {self.threshold}",
            )
        return self

    def looked_at(self) -> Looks:
        """When enough is known."""
        from ..evaluate.looks import Looks

        return Looks(self.looks, self.narrow, self.threshold)


class InterventionSection(Section):
    """Steering with labelled features, to see whether they do what their labels say."""

    features: Count = Field(
        default=0, description="so many labelled features are turned up, drawn by their names"
    )
    random_features: Positive = Field(
        default=20, description="features of the same SAE that each is compared with"
    )
    strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0, description="of what is added, as a share of how long the site's vectors are"
    )
    prompts: Annotated[int, Field(ge=1, le=64)] = Field(
        default=8, description="beginnings of windows that the model goes on from"
    )
    questions: Count = Field(
        default=10,
        description="that the judge is asked about each label, each with two random features; "
        "0: it is not asked",
    )

    @model_validator(mode="after")
    def _has_rivals(self) -> Self:
        if 2 * self.questions > self.random_features:
            raise problem(
                "two `random_features` for each of `questions`",
                found=f"random_features = {self.random_features}, questions = {self.questions}",
            )
        return self


class ScoreSection(Section):
    """How labels are scored."""

    simulators: Annotated[tuple[Simulator, ...], Field(strict=False, min_length=1)] = Field(
        default=("token_lookup",),
        description="each predicts activations from labels: token_lookup from its own; chat asks "
        "a model about those in words, a call a window, chat_sparse about many windows a call; "
        "local and vllm read a model's probabilities without having it write",
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
    intervention: InterventionSection = InterventionSection()

    @property
    def judges(self) -> tuple[JudgeKind, ...]:
        """The simulators that read what labels say."""
        return tuple(kind for kind in self.simulators if kind != "token_lookup")

    @property
    def asked_judges(self) -> tuple[JudgeKind, ...]:
        """Those of them that ask a model; the first asks what else there is to be asked."""
        return tuple(kind for kind in self.judges if kind != "local")

    @property
    def simulator_names(self) -> tuple[str, ...]:
        """What the scores are stored under."""
        return tuple(
            name if name == "token_lookup" else self.judge_name(name) for name in self.simulators
        )

    def judge_name(self, kind: JudgeKind) -> str:
        """What the scores of a judge are stored under."""
        return f"{kind}/{self.chat.model}"

    @model_validator(mode="after")
    def _can_ask(self) -> Self:
        if self.judges and self.chat.model is None:
            raise problem(
                "`chat.model` where a simulator asks a model", found=" and ".join(self.judges)
            )
        if "local" in self.judges and not self.chat.local:
            raise problem("`chat.local = true` where a simulator is `local`", found="local = false")
        if "vllm" in self.judges and self.chat.local:
            raise problem("`chat.local = false` where a simulator is `vllm`", found="local = true")
        if self.chat.second_opinions and self.judges == ("local",):
            raise problem(
                "`chat.second_opinions` beside a simulator whose model is asked, such as `chat`",
                found="simulators without one",
            )
        return self
