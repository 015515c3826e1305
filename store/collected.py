"""What of the corpus is in the database, and what was worked out from it as it is now."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from .facts import REVISION, get_meta, set_meta
from .records import CollectedChunk

_COMPLETE = "corpus_complete"


@dataclass(frozen=True, slots=True)
class Collected:
    """The chunks absorbed, by number.

    Attributes:
        complete_state: the state of corpus and SAEs up to which everything is collected;
            None if collecting never came to its end.
    """

    chunks: dict[int, CollectedChunk]
    complete_state: str | None

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(chunk.n_tokens for chunk in self.chunks.values())


def read_collected(connection: duckdb.DuckDBPyConnection) -> Collected:
    """What has been collected so far."""
    rows = connection.execute(
        "SELECT chunk, chunk_id, n_documents, n_tokens FROM chunks"
    ).fetchall()
    chunks = {number: CollectedChunk(*row) for number, *row in rows}
    return Collected(chunks, get_meta(connection, _COMPLETE))


def chunks_by_part(
    connection: duckdb.DuckDBPyConnection,
) -> dict[str, dict[int, CollectedChunk]]:
    """The same chunks under the names of the parts that brought them."""
    found: dict[str, dict[int, CollectedChunk]] = {}
    for part_id, number, *row in connection.execute(
        "SELECT part_id, chunk, chunk_id, n_documents, n_tokens FROM chunks ORDER BY chunk"
    ).fetchall():
        found.setdefault(part_id, {})[number] = CollectedChunk(*row)
    return found


def mark_complete(connection: duckdb.DuckDBPyConnection, state: str) -> None:
    """Records that the corpus in this state has been collected to its end."""
    set_meta(connection, _COMPLETE, state)


def saes_behind(connection: duckdb.DuckDBPyConnection, what: str) -> list[str]:
    """The SAEs of which this was not worked out from the text as it is now."""
    merged = get_meta(connection, "merged_part")
    saes = connection.execute("SELECT sae_id FROM saes ORDER BY sae_id").fetchall()
    return [sae_id for (sae_id,) in saes if get_meta(connection, f"{what} {sae_id}") != merged]


def mark_worked_out(connection: duckdb.DuckDBPyConnection, what: str, sae_id: str) -> None:
    """Records that this was worked out, of this SAE, from the text as it is now."""
    merged = get_meta(connection, "merged_part") or ""
    set_meta(connection, f"{what} {sae_id}", merged)
    set_meta(connection, REVISION, f"{what} {sae_id} {merged}")
