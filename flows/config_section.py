"""What all tables of the configuration have in common, and the kinds of values in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from .config_text import problem


def _without_secrets(url: str) -> str:
    protocol, separator, rest = url.partition("://")
    if not (separator and protocol and rest.strip("/")):
        raise PydanticCustomError("url", "a URL such as s3://bucket/prefix or file:///folder")
    user, at, place = rest.rpartition("@")
    if at and ":" in user:
        raise problem(
            "a URL without key or password: credentials are read from the environment",
            found=f"{protocol}://…@{place}",
        )
    return url


Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")]
Url = Annotated[str, AfterValidator(_without_secrets)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the configuration: fixed once read, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
