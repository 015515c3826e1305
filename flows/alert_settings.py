"""When a run is to raise an alert; what it then does about that is not a setting."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .config_section import Section, Share


class AlertSection(Section):
    """When somebody should look at a run: then its exit status is 4."""

    failed_share: Share = Field(
        default=0.05, description="more than this share of the labels or windows tried has failed"
    )
    drift: bool = Field(
        default=True, description="a judge's scores of gold items have changed beyond chance"
    )
    score_drop: Annotated[float, Field(ge=0, le=2)] = Field(
        default=0.0,
        description="scores of features that were scored before have fallen by more than this on "
        "average, by the whole of the interval",
    )
