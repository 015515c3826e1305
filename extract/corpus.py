"""Text, streamed: from files, from a hub data set, or from the user's own Python.

Rows that cannot be used are counted with an example of each kind and skipped; when they are
more than the allowed share, reading stops. Nothing is held but the row at hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..store.errors import CorpusError
from ..store.splits import document_id
from .chat_text import Render
from .corpus_rows import BadRow, ordered_files, read_rows

if TYPE_CHECKING:
    from .sae_sources import SaeSource

TextUnit = Literal["paragraph", "line", "file"]

# Before this many rows the share of bad ones says little, so it is judged at the end only.
_ROWS_BEFORE_JUDGING = 10_000


@dataclass(frozen=True, slots=True)
class CorpusSource:
    """Which text to read; exactly one of path, dataset and standard_library is given.

    Attributes:
        path: a .txt, .jsonl or .parquet file, or a folder of them.
        dataset: a data set on the hub, streamed.
        standard_library: the source and documentation of the running Python.
        include_tests: of the standard library, the test suites too.
        text_field: the field or column that holds the text.
        text_unit: what one document of a .txt file is.
        chat: whether the field holds conversations instead, for `render` to put into text.
        max_bad_share: the share of unusable rows above which reading fails.
        known_files: of a folder, the names of files that come first, in this order; all others
            follow by name. So new files extend a corpus, whatever they are called.
    """

    path: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    revision: str | None = None
    standard_library: bool = False
    include_tests: bool = False
    text_field: str = "text"
    text_unit: TextUnit = "paragraph"
    max_bad_share: float = 0.01
    chat: bool = False
    known_files: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.standard_library:
            return "the standard library of this Python"
        return self.path or f"data set {self.dataset}"


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the name its content gives it.

    Attributes:
        is_chat: special tokens in the text are what they spell, put there by a chat template.
    """

    text: str
    doc_id: str
    is_chat: bool = False


@dataclass(slots=True)
class RowCounts:
    """What became of the rows read so far.

    Attributes:
        good: rows that became documents.
        empty: rows without any text, which are skipped but not counted as bad.
        bad: unusable rows, by reason.
        examples: where the first bad row of each reason stands.
    """

    good: int = 0
    empty: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def begin_again(self) -> None:
        """Forgets all rows, before they are read again."""
        self.good = self.empty = 0
        self.bad.clear()
        self.examples.clear()

    @property
    def n_bad(self) -> int:
        """Unusable rows of all reasons."""
        return sum(self.bad.values())

    @property
    def n_rows(self) -> int:
        """All rows read."""
        return self.good + self.empty + self.n_bad

    def add_bad(self, reason: str, where: str) -> None:
        """Counts a row that cannot be used."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        self.examples.setdefault(reason, where)

    def describe_bad(self) -> str:
        """The bad rows by reason, each with the place of the first."""
        return "; ".join(
            f"{n:,} {why} (first: {self.examples[why]})" for why, n in self.bad.items()
        )


def read_documents(
    source: CorpusSource, counts: RowCounts, render: Render | None = None
) -> Iterator[Document]:
    """The corpus's documents, in its own order; `counts` is kept up as they are read.

    Args:
        source: what to read.
        counts: of rows so far.
        render: makes text of a conversation; needed where the source is one of chats.

    Raises:
        CorpusError: the corpus is not there, has no text, or too many of its rows are bad.
    """
    if source.chat and render is None:
        raise ValueError("a corpus of conversations needs a renderer")
    for row in read_rows(source, render):
        if isinstance(row, BadRow):
            counts.add_bad(row.reason, row.where)
            if counts.n_rows >= _ROWS_BEFORE_JUDGING:
                check_bad_share(source, counts)
        elif not row.strip():
            counts.empty += 1
        else:
            counts.good += 1
            yield Document(row, document_id(row), source.chat)
    check_bad_share(source, counts)
    if counts.good == 0:
        raise CorpusError(
            "The corpus has no text.",
            where=str(source),
            found=f"{counts.n_rows:,} rows, none with text",
            expected="at least one document",
            mend="check [corpus] path, dataset_split and text_field",
        )


def check_bad_share(source: CorpusSource, counts: RowCounts) -> None:
    """Judges the rows read; for a reader that stops before the corpus ends.

    Raises:
        CorpusError: more of them are bad than the source allows.
    """
    if counts.n_bad <= source.max_bad_share * counts.n_rows:
        return
    raise CorpusError(
        "Too many rows of the corpus cannot be used.",
        where=str(source),
        found=f"{counts.n_bad:,} of {counts.n_rows:,}: {counts.describe_bad()}",
        expected=f"at most {source.max_bad_share:.1%} bad rows",
        mend="mend the rows, or allow more with [corpus] max_bad_share",
    )


def corpus_source_state(
    source: CorpusSource, saes: Sequence[SaeSource], max_tokens: int | None
) -> str:
    """A description that changes when the text or the SAEs may have changed.

    Of files the size and time of writing, so that a run that has nothing to do need not read
    them; of a hub data set its name and revision.
    """
    files = ordered_files(source) if source.path else []
    files += [sae.path for sae in saes if sae.path is not None]
    return json.dumps(
        {
            "corpus": str(source),
            "python": sys.version if source.standard_library else None,
            "options": [str(getattr(source, name)) for name in source.__slots__],
            "files": [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
            "saes": [sae.sae_id for sae in saes],
            "max_tokens": max_tokens,
        }
    )
