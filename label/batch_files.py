"""Requests cut into the files that batches are made of, within what a provider takes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ..store.records import RecordedRequest
from ..store.request_files import RequestFile
from .batch_lines import request_line
from .call_records import CallRecords
from .request_body import estimated_tokens

if TYPE_CHECKING:
    from ..store.batch_record import Batch

TOO_MUCH_ENQUEUED = "token_limit_exceeded"
"""OpenAI's word for a batch that failed because too much of its model waits in all of them."""

# "Enqueued token limit reached for gpt-4o-mini in organization … Limit: 2,000,000 enqueued tokens."
_STATED_LIMIT = re.compile(r"limit: ([\d,]+) enqueued tokens", re.I)
# Less than what OpenAI lets anyone enqueue: a lower limit is not ours, but others' batches.
_LEAST_TOKENS = 50_000


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What one file may hold; the defaults are OpenAI's (Batch API, November 2026).

    Attributes:
        n_requests: so many.
        n_bytes: so many, "200 MB".
    """

    n_requests: int = 50_000
    n_bytes: int = 200_000_000


@dataclass(slots=True)
class BatchFile:
    """A file of requests for one batch, and what is known of it.

    Attributes:
        batch_id: of a batch still to be made, never used before.
        requests: the requests as they are recorded.
        upload: the same as the provider takes them.
        hashes: the requests'.
        n_tokens: about as many as the provider counts as enqueued.
        most_usd: what they cost at most; None where the model's price is not known.
    """

    batch_id: str
    requests: Path
    upload: Path
    hashes: Collection[str] = ()
    n_tokens: int = 0
    most_usd: Decimal | None = Decimal(0)


def requests_file(folder: Path, batch_id: str) -> Path:
    """Where the requests of a batch lie as they are recorded."""
    return folder / f"{batch_id}.jsonl"


def upload_file(folder: Path, batch_id: str) -> Path:
    """Where they lie as they are sent, until they have been."""
    return folder / f"{batch_id}.upload.jsonl"


def write_batch_files(
    requests: Iterable[RecordedRequest],
    folder: Path,
    records: CallRecords,
    lacking: Collection[str],
    limits: FileLimits | None = None,
) -> Iterator[BatchFile]:
    """Writes requests, all of one model, into as many files as they need; all of it is on disk.

    Args:
        requests: each of them once; read as far as the file that is given, and one more.
        folder: where the files are made.
        records: says what requests cost.
        lacking: what the requests are sent without (`request_body`).
        limits: of a file.
    """
    limits = limits or FileLimits()
    rest = iter(requests)
    request = next(rest, None)
    while request is not None:
        batch_id = uuid4().hex
        file = BatchFile(batch_id, requests_file(folder, batch_id), upload_file(folder, batch_id))
        n_bytes = 0
        with RequestFile(file.requests) as own, file.upload.open("wb") as upload:
            while request is not None:
                line = request_line(request, lacking)
                is_full = len(own) >= limits.n_requests or n_bytes + len(line) > limits.n_bytes
                # A request too long for any file is the provider's to refuse.
                if is_full and len(own):
                    break
                own.add(request)
                upload.write(line)
                n_bytes += len(line)
                file.n_tokens += estimated_tokens(request.request)
                if file.most_usd is not None:
                    is_priced = request.model in records.prices
                    file.most_usd = file.most_usd + records.most_usd(request) if is_priced else None
                request = next(rest, None)
            upload.flush()
            os.fsync(upload.fileno())
            file.hashes = own.hashes
        _sync_names(folder)
        yield file


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def most_enqueued_tokens(batches: Sequence[Batch]) -> int | None:
    """How many tokens of a model a provider lets wait, as far as it has shown by refusing more.

    Counted as `estimated_tokens` counts, which is not how the provider does: each refusal brings
    the figure down, at most to the number that the provider states, and at least by a quarter.

    Args:
        batches: all of one model at one endpoint.

    Returns:
        None where it has refused none for that.
    """
    found: list[int] = []
    for failed in batches:
        if failed.reason is None or not failed.reason.startswith(TOO_MUCH_ENQUEUED):
            continue
        enqueued = sum(other.n_tokens for other in batches if _was_beside(other, failed))
        stated = _STATED_LIMIT.search(failed.reason)
        limit = int(stated[1].replace(",", "")) if stated else enqueued // 2
        found.append(max(_LEAST_TOKENS, min(limit, enqueued * 3 // 4)))
    return min(found, default=None)


def _was_beside(other: Batch, failed: Batch) -> bool:
    """Whether a batch was under way when this one was prepared; each is beside itself."""
    if other.submitted_at is None or other.prepared_at > failed.prepared_at:
        return False
    return other.ended_at is None or other.ended_at > failed.prepared_at
