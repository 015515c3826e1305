"""How text becomes windows, what is kept of them, and where parts lie."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ..store.splits import Split
from .config_section import Count, Positive, Section, Seed, Url
from .config_text import problem

Top = Annotated[Count, Field(description="windows with the highest peaks, per feature")]
Sample = Annotated[Positive, Field(description="windows drawn from all active ones, per feature")]
Background = Annotated[Positive, Field(description="windows whose every feature is kept")]


class KeptInExplain(Section):
    """What is kept of the split that labels are written from."""

    top: Top = 20
    sample: Sample = 20
    background_windows: Background = 1024


class KeptInSelect(Section):
    """What is kept of the split on which the best label is chosen."""

    top: Top = 10
    sample: Sample = 30
    background_windows: Background = 1024


class KeptInScore(Section):
    """What is kept of the split on which labels are scored."""

    top: Top = 20
    sample: Sample = 60
    background_windows: Background = 4096


class CollectSection(Section):
    """How text becomes windows, and what is kept of them."""

    seed: Seed = Field(default=0, description="draws the samples and the background")
    # A position inside a window is stored in one byte.
    window_tokens: Annotated[int, Field(ge=1, le=256)] = Field(
        default=64, description="tokens in a window"
    )
    prefix_tokens: Count = Field(
        default=64, description="tokens before a window that are shown with it"
    )
    sequence_tokens: Annotated[int, Field(ge=2)] = Field(
        default=1024, description="tokens that the model sees at once, BOS included"
    )
    chunks_per_part: Positive = Field(default=16, description="chunks of 256 documents in one part")
    memory_gib: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="for SAEs and what is kept of their features; by default 60% of the memory of "
        "the machine or its container",
    )
    parts_url: Url | None = Field(
        default=None,
        description="where machines that share no folder leave finished parts: an fsspec URL such "
        "as s3://bucket/prefix; credentials are read from the environment",
    )
    logit_effects: bool = Field(
        default=True, description="the output tokens that each feature raises and lowers most"
    )
    neighbours: bool = Field(
        default=True,
        description="the nearest features, by cosine of the decoder and by firing together",
    )
    loss_increase: bool = Field(
        default=False,
        description="what the SAEs' reconstructions cost the model in next-token loss; loads all "
        "its layers",
    )
    explain: KeptInExplain = KeptInExplain()
    select: KeptInSelect = KeptInSelect()
    score: KeptInScore = KeptInScore()

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.sequence_tokens <= self.window_tokens:
            raise problem(
                "`sequence_tokens` greater than `window_tokens` (BOS takes a place)",
                found=f"{self.sequence_tokens} and {self.window_tokens}",
            )
        return self

    def kept(self, split: Split) -> KeptInExplain | KeptInSelect | KeptInScore:
        """What is kept of this split."""
        kept: dict[Split, KeptInExplain | KeptInSelect | KeptInScore] = {
            "explain": self.explain,
            "select": self.select,
            "score": self.score,
        }
        return kept[split]
