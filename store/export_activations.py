"""Contexts as lines of JSON in Neuronpedia's shape of an activation, a block of features at a time.

The lines of a block are put together by Arrow from what its tokens and numbers are in JSON: one
context at a time, a million of them would take minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .export_contexts import (
    ContextBlock,
    context_blocks,
    dense_activations,
    read_pieces,
    whole_list,
)
from .neuronpedia_shape import AUTHOR
from .unit_names import FEATURE_ID_SQL

if TYPE_CHECKING:
    import duckdb

ACTIVATIONS_QUERY = f"""
    SELECT to_json({FEATURE_ID_SQL.format("c")} || '/' || c.split || '/' || c.kind || '/' || c.rank)
            ::VARCHAR AS id,
        to_json(substr({FEATURE_ID_SQL.format("c")}, length(c.sae_id) + 2))::VARCHAR AS index,
        to_json(w.doc_id)::VARCHAR AS document, c.split::VARCHAR AS split, c.kind = 'top' AS is_top,
        f.max_activation AS highest, w.token_ids, c.positions, c.activations, w.tokenizer
    FROM (
        FROM contexts SEMI JOIN chosen_features USING (sae_id, feature)
        WHERE sae_id = $sae AND feature BETWEEN $first AND $last
    ) c
    JOIN windows w USING (window_id)
    JOIN features f ON f.sae_id = c.sae_id AND f.feature = c.feature
    ORDER BY c.feature, c.split, c.kind DESC, c.rank
"""

_NULL = pa.scalar("null")


@dataclass(frozen=True, slots=True)
class ActivationLines:
    """Some contexts of consecutive features.

    Attributes:
        n: how many.
        lines: of JSON, in UTF-8, each with its end.
    """

    block: ContextBlock
    n: int
    lines: memoryview


def activation_lines(
    connection: duckdb.DuckDBPyConnection, features_a_batch: int
) -> Iterator[ActivationLines]:
    """The contexts of `chosen_features`, by SAE, feature, split, kind and rank.

    Args:
        connection: to the database, with that temporary table.
        features_a_batch: what comes at once is of one batch of so many.
    """
    pieces: dict[str, pa.StringArray] = {}
    for block in context_blocks(connection, features_a_batch):
        wanted = {"sae": block.sae_id, "first": block.first, "last": block.last}
        rows = connection.sql(ACTIVATIONS_QUERY, params=wanted).to_arrow_table()
        (tokenizer,) = pc.unique(rows["tokenizer"]).to_pylist()  # an SAE has one model
        if tokenizer not in pieces:
            texts = read_pieces(connection, tokenizer).texts.to_pylist()
            pieces[tokenizer] = pa.array([_json(text) for text in texts], pa.string())
        yield ActivationLines(block, len(rows), _lines(block.sae_id, rows, pieces[tokenizer]))


def _lines(sae_id: str, rows: pa.Table, pieces: pa.StringArray) -> memoryview:
    model, _, source = sae_id.partition("/")
    token_ids = whole_list(rows["token_ids"])
    lengths = pc.list_value_length(token_ids).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = pieces.take(token_ids.flatten().cast(pa.int32()))
    values = dense_activations(
        whole_list(rows["positions"]), whole_list(rows["activations"]), offsets
    )
    highest = np.maximum.reduceat(values, offsets[:-1])
    at = _written(_first_at(values, highest, lengths))
    is_top = rows["is_top"].combine_chunks()

    def of_top(column: pa.StringArray | pa.StringScalar) -> pa.StringArray:
        return pc.if_else(is_top, column, _NULL)

    return _joined_lines(
        {
            "id": rows["id"],
            "modelId": _json(model),
            "layer": _json(source),
            "index": rows["index"],
            "creatorId": _json(AUTHOR),
            "dataIndex": rows["document"],
            "dataSource": pc.binary_join_element_wise('"', rows["split"], '"', ""),
            "tokens": _lists(tokens, offsets),
            "values": _lists(_written(values), offsets),
            "maxValue": _written(highest),
            "maxValueTokenIndex": at,
            "minValue": _written(np.minimum.reduceat(values, offsets[:-1])),
            "dfaValues": "[]",
            "dfaTargetIndex": "null",
            "dfaMaxValue": "null",
            "lossValues": "[]",
            "logitContributions": "null",
            # As Neuronpedia marks the strongest; the others are of no interval of activations.
            "binMin": of_top(pa.scalar("-1")),
            "binMax": of_top(rows["highest"].combine_chunks().cast(pa.string())),
            "binContains": of_top(pa.scalar("-1")),
            "qualifyingTokenIndex": of_top(at),
        }
    )


def _joined_lines(fields: Mapping[str, pa.Array | str]) -> memoryview:
    """Objects of these fields, of which each is JSON: the same for all, or one each."""
    parts: list[pa.Array | str] = []
    for place, (name, value) in enumerate(fields.items()):
        parts += ["," if place else "{", _json(name), ":", value]
    joined = pc.binary_join_element_wise(*_merged([*parts, "}\n"]), "")
    joined = joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
    _, offsets, content = joined.buffers()
    begin, *_, end = np.frombuffer(offsets, np.int32)[joined.offset :][: len(joined) + 1][[0, -1]]
    return memoryview(content)[begin:end]


def _merged(parts: list[pa.Array | str]) -> Iterator[pa.Array | str]:
    """The same with neighbouring constants as one."""
    constant = ""
    for part in parts:
        if isinstance(part, str):
            constant += part
            continue
        if constant:
            yield constant
        constant = ""
        yield part
    if constant:
        yield constant


def _first_at(
    values: npt.NDArray[np.float32],
    highest: npt.NDArray[np.float32],
    lengths: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Of each window the first place at which the value is its highest."""
    window = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.cumsum(lengths) - lengths
    found = np.flatnonzero(values == highest[window])
    _, first = np.unique(window[found], return_index=True)
    places: npt.NDArray[np.int64] = found[first] - begins
    return places


def _lists(items: pa.StringArray, offsets: npt.NDArray[np.int32]) -> pa.StringArray:
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, items), ",")
    return pc.binary_join_element_wise("[", joined, "]", "")


def _written(numbers: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> pa.StringArray:
    return pa.array(numbers).cast(pa.string())


def _json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
