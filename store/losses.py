"""What an SAE's reconstruction costs the model, beside the SAE's other figures in `saes`.

It depends on the corpus's first chunks alone, and stays when the tables are built anew; where
more text changes what those are, it is missing again.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import duckdb

from .facts import REVISION, get_meta, set_meta, transaction
from .records import CollectedChunk, content_hash

# To be raised when the same weights and text give other losses.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SaeLosses:
    """Mean next-token losses in nats; None where they are undefined or cannot be computed.

    Attributes:
        own: of the model as it is.
        spliced: with the SAE's reconstruction in place of its target.
        zeroed: with zeros there.
        n_tokens: predictions that they are means of.
    """

    own: float | None
    spliced: float | None
    zeroed: float | None
    n_tokens: int


@dataclass(frozen=True, slots=True)
class MissingLosses:
    """An SAE whose losses are still to be measured.

    Attributes:
        weights: the content hash of the SAE that the run was collected with.
    """

    sae_id: str
    weights: str


def first_chunks(connection: duckdb.DuckDBPyConnection, n_tokens: int) -> list[CollectedChunk]:
    """The corpus's first chunks that have at least so many tokens together, or all."""
    rows = connection.execute(
        "SELECT chunk_id, n_documents, n_tokens FROM chunks ORDER BY chunk"
    ).fetchall()
    chunks: list[CollectedChunk] = []
    for row in rows:
        if sum(chunk.n_tokens for chunk in chunks) >= n_tokens:
            break
        chunks.append(CollectedChunk(*row))
    return chunks


def missing_losses(connection: duckdb.DuckDBPyConnection, n_tokens: int) -> list[MissingLosses]:
    """The SAEs whose losses were never measured on the first so many tokens of the text."""
    saes = connection.execute("SELECT sae_id, content_hash FROM saes ORDER BY sae_id").fetchall()
    every = [MissingLosses(*row) for row in saes]
    return [
        each
        for each in every
        if get_meta(connection, _key(each)) != _measured_on(connection, each, n_tokens)
    ]


def write_losses(
    connection: duckdb.DuckDBPyConnection, measured: MissingLosses, n_tokens: int, losses: SaeLosses
) -> None:
    """Writes an SAE's losses, measured on the first so many tokens of the text."""
    with transaction(connection):
        connection.execute(
            "UPDATE saes SET loss = ?, loss_spliced = ?, loss_zeroed = ?, n_loss_tokens = ? "
            "WHERE sae_id = ?",
            [*astuple(losses), measured.sae_id],
        )
        set_meta(connection, _key(measured), _measured_on(connection, measured, n_tokens))
        set_meta(connection, REVISION, f"{_key(measured)} {get_meta(connection, _key(measured))}")


def _key(losses: MissingLosses) -> str:
    """The fact in `meta` that says what an SAE's losses were measured on."""
    return f"losses {losses.sae_id}"


def _measured_on(
    connection: duckdb.DuckDBPyConnection, losses: MissingLosses, n_tokens: int
) -> str:
    chunks = [chunk.chunk_id for chunk in first_chunks(connection, n_tokens)]
    return content_hash([_VERSION, losses.weights, n_tokens, chunks])
