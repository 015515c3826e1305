"""The chunks of a corpus as a stream whose groups can be read again.

A task that is retried begins from its first chunk, so a group remembers what was taken of it. And
where reading itself fails the corpus is opened again, and read up to where it was: a stream that
broke off must never be taken for one that has come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..extract.windows import TokenizedChunk


class ChunkStream:
    """Tokenized chunks in order, read only as they are used, so that tokenizing runs ahead."""

    def __init__(self, begin: Callable[[], Iterator[TokenizedChunk]]) -> None:
        """A stream of what `begin` gives, each time from the same beginning."""
        self._begin = begin
        self._chunks: Iterator[TokenizedChunk] | None = None
        self._ahead: TokenizedChunk | None = None
        self._last = -1

    def has_more(self) -> bool:
        """Whether there is another chunk; reads it, and may be asked again where that fails."""
        if self._ahead is None:
            self._ahead = self._read()
        return self._ahead is not None

    def next(self) -> TokenizedChunk:
        """The next chunk, of which `has_more` has told."""
        assert self._ahead is not None, "has_more() comes first"
        chunk, self._ahead = self._ahead, None
        return chunk

    def group(self, size: int) -> ChunkGroup:
        """The next chunks, at most so many."""
        return ChunkGroup(self, size)

    def _read(self) -> TokenizedChunk | None:
        if self._chunks is None:
            last = self._last
            self._chunks = (chunk for chunk in self._begin() if chunk.index > last)
        try:
            chunk = next(self._chunks, None)
        except BaseException:
            # A generator that has raised is at its end whatever there was still to come.
            self._chunks = None
            raise
        if chunk is not None:
            self._last = chunk.index
        return chunk


class ChunkGroup:
    """Consecutive chunks of a stream; each time they are gone through from the first."""

    def __init__(self, stream: ChunkStream, size: int) -> None:
        self._stream = stream
        self._size = size
        self._taken: list[TokenizedChunk] = []

    def __iter__(self) -> Iterator[TokenizedChunk]:
        yield from self._taken
        while len(self._taken) < self._size and self._stream.has_more():
            self._taken.append(self._stream.next())
            yield self._taken[-1]
