"""The inbox: what people write, in small files, until the coordinator absorbs it.

A file holds the rows that one act of writing gives to the tables `labels` and `votes`, and is never
changed. It is written under another name, flushed and renamed, so whoever sees it sees it whole;
anybody may write at any time, without a lock. Its name says when it was written and what is in it.

Of several rows for one label, or of one author's votes on it, the latest counts: each row holds
all that is to be known, so that it does no harm to meet a row twice. What the rows do in a database
is in `inbox_rows.py`.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .errors import StoreError
from .run_folder import clear_disk_errors

if TYPE_CHECKING:
    from .records import Label

_FORMAT = 1
_NAME = re.compile(r"\d{8}T\d{12}Z-([0-9a-f]{16})\.json")


@dataclass(frozen=True, slots=True)
class WrittenLabel:
    """A row of `labels` that a person wrote, or wrote again.

    Attributes:
        saw_score: whether that person had looked at contexts of `score`; None where not said.
    """

    label_id: str
    sae_id: str
    feature: int
    text: str | None
    explanation: str | None
    explainer: str
    prompt_version: str
    draw: int
    source: str
    author: str | None
    status: str
    reason: str | None
    created_at: datetime
    saw_score: bool | None = None

    @classmethod
    def of(cls, label: Label, created_at: datetime, saw_score: bool | None = None) -> WrittenLabel:
        """A label as it is written at this time."""
        return cls(
            label_id=label.label_id,
            sae_id=label.feature_id.sae_id,
            feature=label.feature_id.feature,
            text=label.text,
            explanation=label.explanation,
            explainer=label.explainer,
            prompt_version=label.prompt_version,
            draw=label.draw,
            source=label.source,
            author=label.author,
            status=label.status,
            reason=label.reason,
            created_at=created_at,
            saw_score=saw_score,
        )


@dataclass(frozen=True, slots=True)
class Vote:
    """A row of `votes`.

    Attributes:
        vote: 1 for, -1 against, 0 where an earlier vote is withdrawn.
    """

    label_id: str
    author: str
    vote: int
    voted_at: datetime

    def __post_init__(self) -> None:
        if self.vote not in (-1, 0, 1):
            raise ValueError(f"a vote is 1, -1 or 0, not {self.vote}")


@dataclass(frozen=True, slots=True)
class InboxFile:
    """What a file of the inbox holds; rows as in JSON, times as ISO 8601.

    Attributes:
        name: of the file.
    """

    name: str
    labels: Sequence[Mapping[str, Any]]
    votes: Sequence[Mapping[str, Any]]


def write_to_inbox(
    inbox: Path, labels: Sequence[WrittenLabel] = (), votes: Sequence[Vote] = ()
) -> Path:
    """Writes rows as one file, on disk when this returns; the same rows again are the same file.

    Raises:
        StoreError: the disk refuses it.
    """
    rows = {"labels": list(map(_row, labels)), "votes": list(map(_row, votes))}
    content = json.dumps({"format": _FORMAT, **rows}, ensure_ascii=False, indent=1).encode()
    written_at = max(
        *(each.created_at for each in labels),
        *(each.voted_at for each in votes),
        datetime.min.replace(tzinfo=UTC),
    ).astimezone(UTC)
    file = inbox / f"{written_at:%Y%m%dT%H%M%S%f}Z-{_hash(content)}.json"
    with clear_disk_errors(inbox):
        inbox.mkdir(exist_ok=True)
        unfinished = inbox / f".unfinished-{os.getpid()}-{uuid4().hex[:8]}"
        try:
            with unfinished.open("xb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
        _flush_names(inbox)
    return file


def inbox_names(inbox: Path) -> list[str]:
    """The files that lie in the inbox, the oldest first."""
    try:
        with os.scandir(inbox) as entries:
            return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_inbox(inbox: Path) -> list[InboxFile]:
    """What lies in the inbox, the oldest first.

    A file that is gone when it is to be read was absorbed and published meanwhile: whoever opens
    the published database after this finds it there. One that is damaged, or that a newer version
    wrote, is left where it is, with a warning.
    """
    return list(_readable(inbox))


def _readable(inbox: Path) -> Iterator[InboxFile]:
    for name in inbox_names(inbox):
        try:
            content = (inbox / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(
                "What somebody wrote cannot be read.",
                where=str(inbox / name),
                found=error.strerror,
                expected="permission to read",
            ) from error
        found = _NAME.fullmatch(name)
        assert found is not None, "only such names are listed"
        if _hash(content) != found[1]:
            _warn(inbox / name, "is damaged")
            continue
        rows = json.loads(content)
        if rows["format"] != _FORMAT:
            _warn(inbox / name, "was written by a newer version of Scopenote")
            continue
        yield InboxFile(name, rows["labels"], rows["votes"])


def _warn(file: Path, what: str) -> None:
    warnings.warn(f"{file} {what}: it is left as it is and not counted", stacklevel=5)


def _row(of: WrittenLabel | Vote) -> dict[str, Any]:
    return {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(of).items()
    }


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()


def _flush_names(folder: Path) -> None:
    """Makes a renaming last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
