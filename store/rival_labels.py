"""The labels of a feature's nearest neighbours, which its own has to be told apart from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, UInt64

if TYPE_CHECKING:
    import duckdb

    from .contexts import BackgroundWindows


@dataclass(frozen=True, slots=True)
class RivalLabel:
    """The label of a near neighbour.

    Attributes:
        cosine: of the two features' decoder rows.
    """

    feature: int
    cosine: float
    text: str
    explainer: str


@dataclass(frozen=True, slots=True)
class Rivals:
    """The labels of a feature's neighbours, and where it fires without and with these.

    Attributes:
        labels: the nearest neighbour's first.
        apart: token hashes of the background windows in which the feature fires and none of these
            neighbours does.
        shared: of those in which one of them fires as well.
    """

    labels: tuple[RivalLabel, ...]
    apart: UInt64[np.ndarray, " A"]
    shared: UInt64[np.ndarray, " S"]


def read_rivals(
    connection: duckdb.DuckDBPyConnection,
    sae_id: str,
    features: range,
    explainer: str,
    background: BackgroundWindows,
    n: int = 4,
) -> dict[int, Rivals]:
    """The labels of up to n nearest neighbours by cosine of each feature that has labelled ones.

    Of a neighbour's labels this explainer's is taken, so that the style does not tell whose label
    it is; of several the one in force, else the best on `select`. Where there is none, the label
    in force.
    """
    labels = _read_labels(connection, sae_id, features, explainer, n)
    if not labels:
        return {}
    rivals = {each.feature for of_feature in labels.values() for each in of_feature}
    rows = _read_firings(connection, sae_id, sorted(rivals | set(labels)), background)
    found: dict[int, Rivals] = {}
    for feature, of_feature in labels.items():
        others = np.concatenate([rows[each.feature] for each in of_feature])
        is_shared = np.isin(rows[feature], others)
        hashes = background.windows.token_hash[rows[feature]]
        found[feature] = Rivals(tuple(of_feature), hashes[~is_shared], hashes[is_shared])
    return found


def _read_labels(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: range, explainer: str, n: int
) -> dict[int, list[RivalLabel]]:
    rows = connection.execute(
        """
        WITH near AS (
            SELECT feature, rank, neighbour, value FROM neighbours
            WHERE sae_id = $sae AND kind = 'cosine' AND feature BETWEEN $first AND $last
        ),
        selected AS (
            SELECT label_id, max(value) AS value FROM scores
            WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'select'
            GROUP BY ALL
        ),
        texts AS (
            SELECT l.feature, l.text, l.explainer FROM labels l
            LEFT JOIN (
                SELECT label_id, TRUE AS is_in_force FROM current_labels WHERE sae_id = $sae
            ) USING (label_id)
            LEFT JOIN selected USING (label_id)
            WHERE l.sae_id = $sae AND l.status = 'done' AND l.text IS NOT NULL
                AND l.feature IN (SELECT neighbour FROM near)
                AND (l.explainer = $explainer OR is_in_force)
            QUALIFY row_number() OVER (
                PARTITION BY l.feature
                ORDER BY (l.explainer = $explainer) DESC, is_in_force NULLS LAST,
                    selected.value DESC NULLS LAST, l.label_id
            ) = 1
        )
        SELECT near.feature, near.neighbour, near.value, texts.text, texts.explainer
        FROM near JOIN texts ON texts.feature = near.neighbour
        QUALIFY row_number() OVER (PARTITION BY near.feature ORDER BY near.rank) <= $n
        ORDER BY near.feature, near.rank
        """,
        {
            "sae": sae_id,
            "first": features.start,
            "last": features.stop - 1,
            "explainer": explainer,
            "n": n,
        },
    ).fetchall()
    labels: dict[int, list[RivalLabel]] = {}
    for feature, *label in rows:
        labels.setdefault(feature, []).append(RivalLabel(*label))
    return labels


def _read_firings(
    connection: duckdb.DuckDBPyConnection,
    sae_id: str,
    features: list[int],
    background: BackgroundWindows,
) -> dict[int, Int64[np.ndarray, " N"]]:
    """The rows of the background in which each of these features fires, by hash."""
    found = connection.execute(
        """
        SELECT feature, window_id FROM background
        WHERE sae_id = $sae AND split = $split AND feature IN (SELECT unnest($features))
        """,
        {"sae": sae_id, "split": background.split, "features": features},
    ).fetchnumpy()
    feature = np.asarray(found["feature"], np.int64)
    row = background.rows_of(np.asarray(found["window_id"], np.uint64))
    order = np.lexsort((row, feature))
    feature, row = feature[order], row[order]
    begins, ends = (np.searchsorted(feature, features, side) for side in ("left", "right"))
    return {each: row[begin:end] for each, begin, end in zip(features, begins, ends, strict=True)}
