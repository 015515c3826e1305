"""Where the tasks of a run do their work: in threads of the command, or on Dask's workers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .config_section import Positive, Section, Text
from .config_text import problem

RunnerKind = Literal["thread", "dask"]


class RunnerSection(Section):
    """Where tasks do their work. It changes no result, and may change within a run."""

    kind: RunnerKind = Field(
        default="thread",
        description='"thread" (in this process) or "dask"; `--runner` overrides it',
    )
    address: Text | None = Field(
        default=None,
        description="of a Dask scheduler, such as tcp://10.0.0.1:8786; by default Dask starts "
        "workers on this machine",
    )
    workers: Positive | None = Field(
        default=None,
        description="how many Dask starts on this machine; by default one a processor",
    )

    @model_validator(mode="after")
    def _workers_are_ours(self) -> Self:
        if self.address is not None and self.workers is not None:
            raise problem(
                "`workers` only without `address`: a cluster that is there has its own",
                found=f"workers = {self.workers} beside address = {self.address!r}",
            )
        return self
