"""The errors Scopenote raises on purpose, each saying what a person can do about it.

What is not one of these is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What a command's exit status means (the public contract)."""

    DONE = 0
    FAILED = 1
    USER_MISTAKE = 2
    FINISHED_WITH_FAILURES = 3
    ALERT_RAISED = 4


@dataclass
class ScopenoteError(Exception):
    """Something went wrong that a person can act on.

    Attributes:
        what: one sentence, what went wrong.
        where: the file, line, key, table or tensor it concerns.
        found: the value that was met.
        expected: what would have been accepted.
        mend: what to do, where possible the command to type.
    """

    what: str
    where: str | None = None
    found: str | None = None
    expected: str | None = None
    mend: str | None = None

    exit_code = ExitCode.FAILED

    def __str__(self) -> str:
        named = {
            "where": self.where,
            "found": self.found,
            "expected": self.expected,
            "to mend": self.mend,
        }
        lines = [self.what, *(f"  {name}: {text}" for name, text in named.items() if text)]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type[ScopenoteError], tuple[Any, ...]]:
        # Exceptions pickle by `args`, which a dataclass leaves empty; tasks cross processes.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


class UserMistake(ScopenoteError):
    """An argument, a configuration or an input file is wrong."""

    exit_code = ExitCode.USER_MISTAKE


class ConfigurationError(UserMistake):
    """The configuration has an unknown key or a value that is not allowed."""


class CorpusError(UserMistake):
    """The text cannot be read as configured."""


class ModelError(UserMistake):
    """The model or its tokenizer cannot be loaded or does not fit."""


class SaeError(UserMistake):
    """A sparse autoencoder's file is damaged or does not fit its model."""


class FidelityMismatch(SaeError):
    """An SAE does not do on this text what it was published to do: another tensor is likely."""


class StoreError(ScopenoteError):
    """The run folder or its database cannot be read or written."""


class RunFolderBusy(StoreError):
    """Another process is working on the same run folder."""


class NewerDatabase(StoreError):
    """The database was made by a newer version of Scopenote."""


class PartConflict(StoreError):
    """A part overlaps text already absorbed under another cutting or configuration."""


class BudgetSpent(ScopenoteError):
    """The next call to a model might cost more than the budget has left."""


class AllowanceSpent(BudgetSpent):
    """What this invocation may spend is spent; that is how it was meant to end."""


class NotYetAnswered(ScopenoteError):
    """A request waits for its answer in a batch, or to be sent in one: its label comes later."""


class EndpointRefuses(UserMistake):
    """A model's endpoint will answer no request of this run: wrong key, no credit, no such model.

    Raised again for every later request, which is then not sent.
    """


@dataclass
class RequestGivenUp(ScopenoteError):
    """One request to a model ended without a usable reply; others may fare better.

    Attributes:
        reason: a word of `label/chat.py`'s `Reason`, to be counted and stored.
        attempts: how often it was sent.
        seconds: spent on sending and backing off, without waiting for its turn.
        prompt_tokens, cached_tokens, completion_tokens: where a reply came that cannot be used,
            what it was charged for; None where nothing is known.
    """

    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
