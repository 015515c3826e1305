"""Vectors of labels, in the table `embeddings`: which labels lack one, and which are near a query.

Vectors have length 1, so that an inner product is a cosine. Those of different models are never
compared. Nothing is approximate: all vectors of the model are read, a million of 384 numbers in
half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from .feature_list import ChosenLabels
from .parts import write_part
from .records import content_hash

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    from jaxtyping import Float32

STAGE = "embed"
"""Of parts that hold vectors."""

# Where fewer labels than one in so many are wanted, these are joined before vectors are compared.
_FEW = 8


@dataclass(frozen=True, slots=True)
class QueryVector:
    """The vector of a query, of length 1, and the model that made it."""

    model: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class MeaningRanking:
    """Labels by how near their vectors are to a query's.

    Attributes:
        places: in current_features, with the cosine; the nearest first.
        n_compared: labels that were chosen and have a vector of the model.
    """

    places: tuple[tuple[int, float], ...]
    n_compared: int


@dataclass(frozen=True, slots=True)
class VectorCount:
    """How many labels have a vector of a model, and of how many numbers it is."""

    model: str
    n: int
    dimensions: int


def count_vectors(connection: duckdb.DuckDBPyConnection) -> list[VectorCount]:
    """What vectors there are, those of the model first that has most."""
    rows = connection.execute(
        "SELECT model, count(*) AS n, any_value(len(vector)) FROM embeddings "
        "GROUP BY model ORDER BY n DESC, model"
    ).fetchall()
    return [VectorCount(*row) for row in rows]


def rank_by_meaning(
    connection: duckdb.DuckDBPyConnection,
    vector: QueryVector,
    depth: int,
    chosen: ChosenLabels,
) -> MeaningRanking:
    """The labels nearest to a query.

    Args:
        connection: to a published database.
        vector: the query's, of as many numbers as those of labels.
        depth: how many, at most.
        chosen: the labels to be compared.
    """
    ((n_vectors,),) = connection.execute(
        "SELECT count(*) FROM embeddings WHERE model = $model", {"model": vector.model}
    ).fetchall()
    is_few = chosen.count(connection) * _FEW < n_vectors
    compared = (_COMPARE_FEW if is_few else _COMPARE_ALL).format(chosen=chosen.sql)
    rows = connection.execute(
        f"""
        WITH compared AS MATERIALIZED ({compared}),
        counted AS (SELECT count(*) AS n FROM compared)
        SELECT place, cosine, n FROM compared, counted
        ORDER BY cosine DESC, place LIMIT {depth}
        """,
        {"model": vector.model, "vector": list(vector.values), **chosen.parameters},
    ).fetchall()
    places = tuple((place, cosine) for place, cosine, _ in rows)
    return MeaningRanking(places, rows[0][2] if rows else 0)


# Joined are the cosines: with the vectors it takes twice as long. And by a number, not by the ids
# themselves, which doubles it again; of a million labels two share one in 1 of 30 million runs.
_COSINE = "list_inner_product(vector, $vector::FLOAT[]) AS cosine"
_COMPARE_FEW = f"""
    SELECT place, {_COSINE} FROM (FROM embeddings WHERE model = $model)
    JOIN ({{chosen}}) USING (label_id)
"""
_COMPARE_ALL = f"""
    WITH cosines AS MATERIALIZED (
        SELECT hash(label_id) AS label, {_COSINE} FROM embeddings WHERE model = $model
    )
    SELECT place, cosine
    FROM cosines JOIN (SELECT place, hash(label_id) AS label FROM ({{chosen}})) USING (label)
"""


# What a vector is made of: what a label says, and why. That of the token lookup only gives figures
# for the tokens that its label names.
_SAID = """
    CASE WHEN f.explainer = 'token_lookup' OR l.explanation IS NULL OR l.explanation = f.text
        THEN f.text ELSE f.text || chr(10) || l.explanation END
"""
_LACKING = """
    FROM current_features f JOIN labels l USING (label_id)
    ANTI JOIN (FROM embeddings WHERE model = $model) e USING (label_id)
"""


def count_lacking(connection: duckdb.DuckDBPyConnection, model: str) -> int:
    """How many labels in force have no vector of a model."""
    ((n,),) = connection.execute(f"SELECT count(*) {_LACKING}", {"model": model}).fetchall()
    return int(n)


@dataclass(frozen=True, slots=True)
class LabelText:
    """A label and what of it is made a vector."""

    place: int
    label_id: str
    text: str


def read_lacking(
    connection: duckdb.DuckDBPyConnection, model: str, n: int, after: int
) -> list[LabelText]:
    """The next labels in force, in the order of features, that have no vector of a model.

    Args:
        connection: to the working copy, whose `current_features` is made.
        model: its name in `embeddings`.
        n: how many, at most.
        after: the place in `current_features` after which they stand; -1 for the first.
    """
    rows = connection.execute(
        f"SELECT f.place, label_id, {_SAID} {_LACKING} WHERE f.place > $after "
        f"ORDER BY f.place LIMIT {n}",
        {"model": model, "after": after},
    ).fetchall()
    return [LabelText(*row) for row in rows]


def write_vectors(
    parts: Path, model: str, vectors: Mapping[str, Float32[np.ndarray, " D"]]
) -> None:
    """Writes a part with the vectors of labels, by their ids, all of one length; of none nothing.

    Args:
        parts: the run's folder of parts.
        model: that made them.
        vectors: of length 1.
    """
    if not vectors:
        return
    rows = {
        "label_id": pa.array(vectors, pa.string()),
        "model": pa.array([model] * len(vectors), pa.string()),
        "vector": pa.array(list(vectors.values()), pa.list_(pa.float32())),
    }
    part_id = content_hash([STAGE, model, sorted(vectors)])
    write_part(parts, part_id, STAGE, {"embeddings": pa.table(rows)}, {"model": model})
