"""The contexts of an export, token by token, read a block of features at a time.

A block has about `BLOCK_ROWS` contexts, however many features that are: memory does not grow with
the run. Tokens and activations are put together by Arrow and NumPy, for all windows of a block at
once; one at a time, a million of them would take minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .unit_names import FEATURE_ID_SQL

if TYPE_CHECKING:
    import duckdb

BLOCK_ROWS = 32_768
"""Contexts of a block; a feature's are never divided."""

CONTEXTS_QUERY = f"""
    SELECT {FEATURE_ID_SQL.format("c")} AS feature_id, c.sae_id, c.feature,
        c.split::VARCHAR AS split, c.kind, c.rank, printf('%016x', c.window_id) AS window_id,
        w.doc_id, w.start, c.max_activation, c.weight, c.copies,
        w.token_ids, c.positions, c.activations, w.prefix_token_ids, w.tokenizer
    FROM (
        FROM contexts SEMI JOIN chosen_features USING (sae_id, feature)
        WHERE sae_id = $sae AND feature BETWEEN $first AND $last
    ) c
    JOIN windows w USING (window_id)
    ORDER BY c.feature, c.split, c.kind DESC, c.rank
"""

CONTEXTS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("feature_id", "sae_id")),
        ("feature", pa.int32()),
        *((name, pa.string()) for name in ("split", "kind")),
        ("rank", pa.int32()),
        *((name, pa.string()) for name in ("window_id", "doc_id")),
        ("start", pa.int64()),
        ("max_activation", pa.float32()),
        ("weight", pa.float64()),
        ("copies", pa.int64()),
        ("tokens", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.int32())),
        ("activations", pa.list_(pa.float32())),
        *((name, pa.string()) for name in ("text", "prefix")),
    ]
)
"""`tokens`, `token_ids` and `activations` are equally long, with 0 where the feature is off;
`text` is what the tokens spell, `prefix` the text before them."""


@dataclass(frozen=True, slots=True)
class ContextBlock:
    """Features of an SAE, from the first to the last."""

    sae_id: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """What tokens spell, by their numbers: as text, and as bytes."""

    texts: pa.StringArray
    bytes: pa.BinaryArray


def context_batches(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    """The contexts of `chosen_features`, by SAE, feature, split, kind and rank.

    Args:
        connection: to the database, with that temporary table.

    Yields:
        Tables of `CONTEXTS_SCHEMA`, never empty.
    """
    pieces: dict[str, Pieces] = {}
    for block in context_blocks(connection):
        wanted = {"sae": block.sae_id, "first": block.first, "last": block.last}
        rows = connection.sql(CONTEXTS_QUERY, params=wanted).to_arrow_table()
        (tokenizer,) = pc.unique(rows["tokenizer"]).to_pylist()  # an SAE has one model
        if tokenizer not in pieces:
            pieces[tokenizer] = read_pieces(connection, tokenizer)
        yield _spelled_out(rows, pieces[tokenizer])


def context_blocks(
    connection: duckdb.DuckDBPyConnection, features_a_batch: int | None = None
) -> list[ContextBlock]:
    """Blocks of `chosen_features` with about `BLOCK_ROWS` contexts each, in their order.

    Args:
        connection: to the database, with that temporary table.
        features_a_batch: no block goes beyond a multiple of this.
    """
    rows = connection.execute(
        """
        SELECT sae_id, feature, count(*) FROM contexts
        SEMI JOIN chosen_features USING (sae_id, feature)
        GROUP BY ALL ORDER BY sae_id, feature
        """
    ).fetchall()
    blocks: list[ContextBlock] = []
    held = BLOCK_ROWS
    for sae_id, feature, n in rows:
        begins = features_a_batch is not None and (
            not blocks or blocks[-1].last // features_a_batch != feature // features_a_batch
        )
        if begins or held + n > BLOCK_ROWS or blocks[-1].sae_id != sae_id:
            blocks.append(ContextBlock(sae_id, feature, feature))
            held = 0
        blocks[-1] = ContextBlock(sae_id, blocks[-1].first, feature)
        held += n
    return blocks


def read_pieces(connection: duckdb.DuckDBPyConnection, tokenizer: str) -> Pieces:
    """What the tokens of all windows spell."""
    rows = connection.execute(
        "SELECT token_id, text, bytes FROM pieces WHERE tokenizer = ?", [tokenizer]
    ).fetchall()
    ((highest,),) = connection.execute(
        "SELECT max(greatest(list_max(token_ids), list_max(prefix_token_ids))) FROM windows "
        "WHERE tokenizer = ?",
        [tokenizer],
    ).fetchall()
    n = 1 + max(highest or 0, *(token_id for token_id, *_ in rows))
    # A token without a piece is shown by its number rather than left out.
    texts = [f"<{token_id}>" for token_id in range(n)]
    spelled: list[bytes | None] = [None] * n
    for token_id, text, content in rows:
        if text is not None:
            texts[token_id] = text
        spelled[token_id] = content
    known = [text.encode() if content is None else content
             for text, content in zip(texts, spelled, strict=True)]  # fmt: skip
    return Pieces(pa.array(texts, pa.string()), pa.array(known, pa.binary()))


def _spelled_out(rows: pa.Table, pieces: Pieces) -> pa.Table:
    token_ids = whole_list(rows["token_ids"])
    lengths = pc.list_value_length(token_ids).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    numbers = token_ids.flatten().cast(pa.int32())
    activations = dense_activations(
        whole_list(rows["positions"]), whole_list(rows["activations"]), offsets
    )
    made = {
        "tokens": pa.ListArray.from_arrays(offsets, pieces.texts.take(numbers)),
        "token_ids": pa.ListArray.from_arrays(offsets, numbers),
        "activations": pa.ListArray.from_arrays(offsets, pa.array(activations)),
        "text": _joined(token_ids, pieces),
        "prefix": _joined(whole_list(rows["prefix_token_ids"]), pieces),
    }
    columns = [
        made[name] if name in made else rows[name].cast(kind)
        for name, kind in zip(CONTEXTS_SCHEMA.names, CONTEXTS_SCHEMA.types, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=CONTEXTS_SCHEMA)


def dense_activations(
    positions: pa.ListArray, values: pa.ListArray, offsets: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """Activations of all tokens of all windows, one after the other."""
    dense = np.zeros(offsets[-1], np.float32)
    starts = np.repeat(offsets[:-1], pc.list_value_length(positions).to_numpy())
    dense[starts + positions.flatten().to_numpy()] = values.flatten().to_numpy()
    return dense


def _joined(token_ids: pa.ListArray, pieces: Pieces) -> pa.StringArray:
    """What each list of tokens spells; bytes that are no character are shown as U+FFFD."""
    lengths = pc.fill_null(pc.list_value_length(token_ids), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    spelled = pieces.bytes.take(token_ids.flatten().cast(pa.int32()))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, spelled), b"")
    return pa.array([each.decode("utf-8", "replace") for each in joined.to_pylist()], pa.string())


def whole_list(column: pa.ChunkedArray) -> pa.ListArray:
    """A column of lists in one piece."""
    found = column.combine_chunks()
    # Of several chunks, and in some versions of one, what comes is itself chunked.
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found
