"""Documents cut into chunks, sequences and windows.

A *chunk* is 256 documents: the unit of work, which batches never cross, so that floating point
comes out the same however chunks are spread over machines. A *sequence* is what the model sees
at once: BOS and up to 1,023 tokens of one document. Sequences are *packed* into the rows of a
batch; attention stays inside each. A *window* is 64 tokens of a sequence: what is kept, shown
and scored.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, Int32, Int64, UInt8, UInt64

from ..store.errors import CorpusError
from ..store.records import CollectedChunk, content_hash
from ..store.splits import SPLITS, split_of, token_hash, window_id
from .corpus import Document

CHUNK_DOCUMENTS = 256
NOTHING_COLLECTED: Mapping[int, CollectedChunk] = {}

# An occurrence is a document's number in the corpus and a token's place in it, in one integer
# whose order is theirs.
_START_BITS = 24


@dataclass(frozen=True, slots=True)
class WindowShape:
    """How documents are cut.

    Attributes:
        window_tokens: tokens in a window (fewer in a document's last).
        prefix_tokens: tokens before a window that are kept beside it, never scored.
        sequence_tokens: tokens that the model sees at once, BOS included.
        seed: of the hash that decides which windows are sampled.
    """

    window_tokens: int = 64
    prefix_tokens: int = 64
    sequence_tokens: int = 1024
    seed: int = 0

    @property
    def sequence_content(self) -> int:
        """Tokens of text in a full sequence: whole windows, beside BOS."""
        return (self.sequence_tokens - 1) // self.window_tokens * self.window_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """256 documents (the corpus's last chunk may have fewer)."""

    index: int
    documents: tuple[Document, ...]

    @property
    def is_chat(self) -> bool:
        """Whether its documents are conversations; a corpus has one kind."""
        return self.documents[0].is_chat

    @property
    def chunk_id(self) -> str:
        """A hash of the chunk's place and its documents' contents."""
        return content_hash([self.index, [d.doc_id for d in self.documents]])


@dataclass(frozen=True, slots=True)
class TokenizedChunk:
    """A chunk's tokens, sequences and windows.

    Attributes:
        tokens: all documents' tokens, one after another, without BOS.
        sequence_start, sequence_length: where each sequence's text lies in `tokens`.
        window_start: where each window lies in `tokens`; it ends where the next starts.
        window_sequence: the sequence that each window is part of.
        window_split: number of the split in SPLITS.
        occurrence: document and place of each window, in one ordered integer.
        prefix_length: tokens before the window that the model saw and that are kept beside it.
        doc_ids: of the chunk's documents; window_document points into it.
    """

    index: int
    chunk_id: str
    doc_ids: tuple[str, ...]
    tokens: Int32[np.ndarray, " N"]
    sequence_start: Int64[np.ndarray, " Q"]
    sequence_length: Int64[np.ndarray, " Q"]
    window_start: Int64[np.ndarray, " W"]
    window_length: Int64[np.ndarray, " W"]
    window_sequence: Int64[np.ndarray, " W"]
    window_document: Int64[np.ndarray, " W"]
    window_split: Int8[np.ndarray, " W"]
    token_hash: UInt64[np.ndarray, " W"]
    window_id: UInt64[np.ndarray, " W"]
    occurrence: Int64[np.ndarray, " W"]
    prefix_length: Int64[np.ndarray, " W"]

    @property
    def n_tokens(self) -> int:
        """Tokens of text in the chunk."""
        return len(self.tokens)

    def begin(self, n_tokens: int) -> TokenizedChunk:
        """Its first sequences, as few as have this many tokens together, as if it ended there."""
        ends = np.cumsum(self.sequence_length)
        n_sequences = min(int(np.searchsorted(ends, n_tokens)) + 1, len(ends))
        n_windows = int(np.searchsorted(self.window_sequence, n_sequences))
        cut: dict[str, Any] = {name: getattr(self, name)[:n_windows] for name in _OF_WINDOWS}
        return replace(
            self,
            tokens=self.tokens[: ends[:n_sequences].max(initial=0)],
            sequence_start=self.sequence_start[:n_sequences],
            sequence_length=self.sequence_length[:n_sequences],
            **cut,
        )


_OF_WINDOWS = (
    "window_start",
    "window_length",
    "window_sequence",
    "window_document",
    "window_split",
    "token_hash",
    "window_id",
    "occurrence",
    "prefix_length",
)


def cut_chunks(
    documents: Iterable[Document], collected: Mapping[int, CollectedChunk] = NOTHING_COLLECTED
) -> Iterator[Chunk]:
    """The documents in groups of 256, numbered from 0.

    Args:
        documents: in the corpus's order.
        collected: chunks that are cut already, by number: what was the last one stays as short
            as it was when documents come after it.
    """
    gathered: list[Document] = []
    index = 0
    for document in documents:
        gathered.append(document)
        size = collected[index].n_documents if index in collected else CHUNK_DOCUMENTS
        if len(gathered) == size:
            yield Chunk(index, tuple(gathered))
            gathered, index = [], index + 1
    if gathered:
        yield Chunk(index, tuple(gathered))


def tokenize_chunk(
    chunk: Chunk, tokenizer: Any, tokenizer_name: str, shape: WindowShape
) -> TokenizedChunk:
    """The chunk's windows.

    Text that spells a special token (`<bos>`) is split into ordinary tokens: a corpus cannot
    feed the model a BOS in the middle. In conversations it is what it spells: there a chat
    template has put it.

    Raises:
        CorpusError: a document has more than 16 million tokens.
    """
    encoded = tokenizer(
        [document.text for document in chunk.documents],
        add_special_tokens=False,
        split_special_tokens=not chunk.is_chat,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    documents = [np.asarray(ids, dtype=np.int32) for ids in encoded]
    for document, ids in zip(chunk.documents, documents, strict=True):
        _check_length(document, len(ids))
    tokens = np.concatenate(documents)
    n_tokens = np.array([len(ids) for ids in documents])
    begin = np.cumsum(n_tokens) - n_tokens
    # A sequence holds whole windows, so both are cut from the document's beginning.
    sequence_document, sequence_start = _cut(n_tokens, shape.sequence_content)
    window_document, window_start = _cut(n_tokens, shape.window_tokens)
    n_sequences = np.bincount(sequence_document, minlength=len(documents))
    first_sequence = np.cumsum(n_sequences) - n_sequences
    window_length = np.minimum(shape.window_tokens, n_tokens[window_document] - window_start)
    doc_ids = tuple(document.doc_id for document in chunk.documents)
    split = np.array([SPLITS.index(split_of(doc_id)) for doc_id in doc_ids], dtype=np.int8)
    ends = np.cumsum(window_length)
    contents = [tokens[end - n : end] for end, n in zip(ends, window_length, strict=True)]
    names = [
        window_id(tokenizer_name, doc_ids[document], int(start), content)
        for document, start, content in zip(window_document, window_start, contents, strict=True)
    ]
    return TokenizedChunk(
        index=chunk.index,
        chunk_id=chunk.chunk_id,
        doc_ids=doc_ids,
        tokens=tokens,
        sequence_start=begin[sequence_document] + sequence_start,
        sequence_length=np.minimum(
            shape.sequence_content, n_tokens[sequence_document] - sequence_start
        ),
        window_start=begin[window_document] + window_start,
        window_length=window_length,
        window_sequence=first_sequence[window_document] + window_start // shape.sequence_content,
        window_document=window_document,
        window_split=split[window_document],
        token_hash=np.array([token_hash(c, shape.seed) for c in contents], dtype=np.uint64),
        window_id=np.array(names, dtype=np.uint64),
        occurrence=(chunk.index * CHUNK_DOCUMENTS + window_document) << _START_BITS | window_start,
        prefix_length=np.minimum(shape.prefix_tokens, window_start % shape.sequence_content),
    )


def take_prefix(chunks: Iterable[TokenizedChunk], n_tokens: int) -> list[TokenizedChunk]:
    """The first sequences of a corpus that have this many tokens together, or all of them.

    Args:
        chunks: from the corpus's beginning; read no further than needed.
        n_tokens: special tokens in the text counted.
    """
    taken: list[TokenizedChunk] = []
    left = n_tokens
    for each in chunks:
        taken.append(each.begin(left))
        left -= taken[-1].n_tokens
        if left <= 0:
            break
    return taken


def _check_length(document: Document, n_tokens: int) -> None:
    if n_tokens >= 1 << _START_BITS:
        raise CorpusError(
            "A document is too long.",
            where=f"the document that begins {document.text[:40]!r}",
            found=f"{n_tokens:,} tokens",
            expected=f"fewer than {1 << _START_BITS:,}",
            mend="cut it into several documents",
        )


def _cut(n_tokens: Int64[np.ndarray, " D"], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The document of each piece of `size` tokens, and where in the document it starts."""
    n_pieces = -(-n_tokens // size)
    return np.repeat(np.arange(len(n_tokens)), n_pieces), _count_up(n_pieces) * size


def occurrence_start(occurrence: Int64[np.ndarray, " W"]) -> Int64[np.ndarray, " W"]:
    """Tokens of the document before the window."""
    start: Int64[np.ndarray, " W"] = occurrence & ((1 << _START_BITS) - 1)
    return start


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Sequences of one chunk that the model sees together.

    Attributes:
        input_ids: rows of sequences, each BOS and text, padded on the right.
        position_ids: each token's place in its sequence, from which follows where sequences
            begin; 0 for padding.
        flat_positions: where each text token of the batch lies in the flattened input.
        windows: the chunk's windows in this batch, in the order of their tokens.
        window_of_token: for each text token, the number of its window within `windows`.
        position: the token's place in its window.
        is_special: which text tokens are special ones after all; None where none is.
    """

    input_ids: Int32[np.ndarray, "B S"]
    position_ids: Int32[np.ndarray, "B S"]
    flat_positions: Int64[np.ndarray, " T"]
    windows: Int64[np.ndarray, " W"]
    window_of_token: Int32[np.ndarray, " T"]
    position: UInt8[np.ndarray, " T"]
    is_special: Bool[np.ndarray, " T"] | None

    def rows(self, begin: int, end: int) -> tuple[SequenceBatch, slice]:
        """Some of the rows as a batch of their own, and which of its windows are in it."""
        width = self.input_ids.shape[1]
        first, last = np.searchsorted(self.flat_positions, [begin * width, end * width])
        window_of_token = self.window_of_token[first:last]
        windows = slice(int(window_of_token[0]), int(window_of_token[-1]) + 1)
        part = SequenceBatch(
            input_ids=self.input_ids[begin:end],
            position_ids=self.position_ids[begin:end],
            flat_positions=self.flat_positions[first:last] - begin * width,
            windows=self.windows[windows],
            window_of_token=window_of_token - window_of_token[0],
            position=self.position[first:last],
            is_special=None if self.is_special is None else self.is_special[first:last],
        )
        return part, windows


def batch_sequences(
    chunk: TokenizedChunk, bos: int, pad: int, special: frozenset[int], max_tokens: int
) -> Iterator[SequenceBatch]:
    """The chunk's sequences in batches of at most `max_tokens` tokens, padding included.

    No row is longer than the chunk's longest sequence with its BOS; shorter ones share a row.
    The batches depend on the chunk alone. A batch holds at least one row, whatever its length.
    """
    special_ids = np.array(sorted(special), dtype=np.int32)
    lengths = 1 + chunk.sequence_length
    rows = pack_rows(lengths)
    n_rows = max(1, max_tokens // int(lengths.max(initial=1)))
    for begin in range(0, len(rows), n_rows):
        yield _build_batch(chunk, rows[begin : begin + n_rows], bos, pad, special_ids)


def pack_rows(lengths: Int64[np.ndarray, " Q"]) -> list[list[int]]:
    """The numbers of sequences in rows no longer than the longest of them.

    Best fit, longest first: each goes where it leaves the least room.
    """
    rows: list[list[int]] = []
    capacity = int(lengths.max(initial=0))
    # Room that is left in a row, and the row's number, by rising room.
    rooms: list[tuple[int, int]] = []
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        place = bisect_left(rooms, (length, 0))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(sequence)
        # Every sequence has at least two tokens.
        if room - length > 1:
            insort(rooms, (room - length, row))
    return rows


def _build_batch(
    chunk: TokenizedChunk,
    rows: list[list[int]],
    bos: int,
    pad: int,
    special_ids: Int32[np.ndarray, " X"],
) -> SequenceBatch:
    sequences = np.concatenate([np.array(row) for row in rows])
    row_of_sequence = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    lengths = chunk.sequence_length[sequences]
    ends = np.cumsum(1 + lengths)
    row_begin = (ends - 1 - lengths)[np.searchsorted(row_of_sequence, np.arange(len(rows)))]
    width = int(np.diff(np.append(row_begin, ends[-1])).max())
    # Where each sequence's BOS lies in the flattened input.
    begin = row_of_sequence * width + ends - 1 - lengths - row_begin[row_of_sequence]
    position_ids = np.zeros(len(rows) * width, dtype=np.int32)
    position_ids[_spread(begin, 1 + lengths)] = _count_up(1 + lengths)
    input_ids = np.full(len(rows) * width, pad, dtype=np.int32)
    input_ids[begin] = bos
    flat_positions = _spread(begin + 1, lengths)
    content = chunk.tokens[_spread(chunk.sequence_start[sequences], lengths)]
    input_ids[flat_positions] = content
    first, end = np.searchsorted(chunk.window_sequence, [sequences, sequences + 1])
    windows = _spread(first, end - first)
    window_lengths = chunk.window_length[windows]
    is_special = np.isin(content, special_ids)
    return SequenceBatch(
        input_ids=input_ids.reshape(len(rows), width),
        position_ids=position_ids.reshape(len(rows), width),
        flat_positions=flat_positions,
        windows=windows,
        window_of_token=np.repeat(np.arange(len(windows), dtype=np.int32), window_lengths),
        position=_count_up(window_lengths).astype(np.uint8),
        is_special=is_special if is_special.any() else None,
    )


def _spread(starts: Int64[np.ndarray, " X"], lengths: Int64[np.ndarray, " X"]) -> np.ndarray:
    """Each start and the whole numbers after it, as many as its length says."""
    spread: np.ndarray = np.repeat(starts, lengths) + _count_up(lengths)
    return spread


def _count_up(lengths: Int64[np.ndarray, " X"]) -> Int64[np.ndarray, " N"]:
    """0, 1, …, lengths[0]-1, 0, 1, …, lengths[1]-1, and so on."""
    ends = np.cumsum(lengths)
    counted: Int64[np.ndarray, " N"] = np.arange(ends[-1] if len(ends) else 0) - np.repeat(
        ends - lengths, lengths
    )
    return counted
