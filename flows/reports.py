"""What a flow did: by stage, how much was done, what was there already, and what failed.

Plain values, so that the command line, a schedule and a test read the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..store.errors import ExitCode


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did.

    Attributes:
        stage: `collect`, `explain` or `score`.
        unit: what is counted: `tokens`, `features`, `labels`.
        done: how many now.
        already_done: how many were there before.
        failures: stored failures of this stage, counted by reason.
        seconds: how long it took.
        notes: what else a person should know, a sentence each.
        waiting: how many come later, when answers that are under way have come.
        reasons: of labels that a model was asked for, how many were made for which reason.
        left: how many features were left for another time.
        is_spent: what the invocation may spend was spent before all was done.
    """

    stage: str
    unit: str
    done: int
    already_done: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    waiting: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    left: int = 0
    is_spent: bool = False

    @property
    def n_failed(self) -> int:
        """How many failed, for whatever reason."""
        return sum(self.failures.values())

    def remarks(self) -> list[str]:
        """What its progress has not said already, a line each."""
        lines = []
        if self.waiting:
            lines.append(f"{self.waiting:,} {self.unit} wait for answers")
        elif not self.done and not self.failures:
            lines.append(f"nothing to do, {self.already_done:,} {self.unit} already there")
        if self.already_done and (self.waiting or self.done or self.failures):
            lines.append(f"{self.already_done:,} {self.unit} were there already")
        lines += [f"{n:,} written for the reason “{why}”" for why, n in self.reasons.items() if n]
        lines += [f"{count:,} failed: {reason}" for reason, count in self.failures.items()]
        if self.is_spent:
            lines.append("what this invocation may spend is spent; the next one goes on")
        return [f"{self.stage}: {line}" for line in (*lines, *self.notes)]


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a whole run did, stage by stage."""

    stages: tuple[StageReport, ...]

    @property
    def n_failed(self) -> int:
        """How many failed over all stages."""
        return sum(stage.n_failed for stage in self.stages)

    @property
    def did_nothing(self) -> bool:
        """Whether everything was there already."""
        return not any(stage.done or stage.failures or stage.waiting for stage in self.stages)

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of a command that did this."""
        return ExitCode.FINISHED_WITH_FAILURES if self.n_failed else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        """For `runs.summary` and `--json`."""
        return asdict(self)
