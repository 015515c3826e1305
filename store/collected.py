"""What of the corpus is in the database."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from .database import get_meta, set_meta

_COMPLETE = "corpus_complete"


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as absorbed."""

    chunk_id: str
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Collected:
    """The chunks absorbed, by number.

    Attributes:
        complete_state: the state of corpus and SAEs up to which everything is collected;
            None if collecting never came to its end.
    """

    chunks: dict[int, StoredChunk]
    complete_state: str | None

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(chunk.n_tokens for chunk in self.chunks.values())


def read_collected(connection: duckdb.DuckDBPyConnection) -> Collected:
    """What has been collected so far."""
    rows = connection.execute("SELECT chunk, chunk_id, n_tokens FROM chunks").fetchall()
    chunks = {number: StoredChunk(chunk_id, n_tokens) for number, chunk_id, n_tokens in rows}
    return Collected(chunks, get_meta(connection, _COMPLETE))


def mark_complete(connection: duckdb.DuckDBPyConnection, state: str) -> None:
    """Records that the corpus in this state has been collected to its end."""
    set_meta(connection, _COMPLETE, state)
