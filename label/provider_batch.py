"""A batch as its provider describes it, read without trusting it; fields not used are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
"""The states in which nothing more comes; the provider's other words are ways there."""


@dataclass(frozen=True, slots=True)
class ProviderBatch:
    """A batch.

    Attributes:
        provider_id: what the provider calls it.
        state: its word.
        files: names of the files of results, that of answers first; not all may exist.
        n_done: requests that it is done with.
        seconds: from its making to its end, by the provider's clock; 0 where that is not known.
        error_code, error: why it failed as a whole, where it did.
    """

    provider_id: str
    state: str
    files: tuple[str, ...] = ()
    n_done: int = 0
    seconds: float = 0.0
    error_code: str | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ENDED


class FileAnswer(BaseModel):
    """What comes back for a file that was sent."""

    id: str


class _Counts(BaseModel):
    completed: int = 0
    failed: int = 0


class _BatchError(BaseModel):
    code: str | None = None
    message: str | None = None


class _BatchErrors(BaseModel):
    data: tuple[_BatchError, ...] | None = None


class BatchAnswer(BaseModel):
    """What comes back for a batch."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: _Counts | None = None
    errors: _BatchErrors | None = None
    created_at: int | None = None
    completed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None

    def as_batch(self) -> ProviderBatch:
        """The batch that it describes."""
        ended_at = self.completed_at or self.expired_at or self.cancelled_at or self.failed_at
        seconds = 0.0
        if ended_at is not None and self.created_at is not None:
            seconds = max(0.0, float(ended_at - self.created_at))
        counts = self.request_counts or _Counts()
        errors = (self.errors.data if self.errors else None) or (_BatchError(),)
        return ProviderBatch(
            provider_id=self.id,
            state=self.status,
            files=tuple(file for file in (self.output_file_id, self.error_file_id) if file),
            n_done=counts.completed + counts.failed,
            seconds=seconds,
            error_code=errors[0].code,
            error=errors[0].message,
        )


class _Listed(BaseModel):
    id: str
    metadata: dict[str, Any] | None = None


class BatchListAnswer(BaseModel):
    """A page of the list of all batches: of each no more than tells whose it is."""

    data: tuple[_Listed, ...]
    has_more: bool | None = None
