"""Near misses: background windows in which a feature's neighbours fire and the feature does not.

A label that says no more than what a feature shares with its neighbours fits them as well as the
windows of the feature itself. Neighbours are those by cosine of the decoder rows, which need no
activations; of the neighbours' windows all of the background are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from .records import Windows

if TYPE_CHECKING:
    import duckdb

    from .contexts import BackgroundWindows


@dataclass(frozen=True, slots=True)
class NearMisses:
    """Windows in which a feature is silent and one of its neighbours fires.

    Attributes:
        windows: those of the nearest neighbours first, each neighbour's in turn.
        neighbour: whose window each is: of several neighbours that fire, the nearest.
    """

    windows: Windows
    neighbour: Int64[np.ndarray, " W"]

    def __len__(self) -> int:
        return len(self.windows)


def read_near_misses(
    connection: duckdb.DuckDBPyConnection,
    sae_id: str,
    features: range,
    background: BackgroundWindows,
    n: int,
) -> dict[int, NearMisses]:
    """Up to n near misses of each feature; none where all its neighbours fire only with it.

    Every neighbour gives the window with the smallest hash that is left, the nearest first, then
    every neighbour its next, until there are n. So n nearest windows of a neighbour that fires
    often do not crowd out the others, and the choice depends on nothing but ranks and hashes.
    """
    found = connection.execute(
        """
        WITH near AS (
            SELECT feature, rank, neighbour FROM neighbours
            WHERE sae_id = $sae AND kind = 'cosine' AND feature BETWEEN $first AND $last
        ),
        fired AS (
            SELECT feature, window_id FROM background
            WHERE sae_id = $sae AND split = $split AND (
                feature BETWEEN $first AND $last OR feature IN (SELECT neighbour FROM near)
            )
        ),
        missed AS (
            SELECT near.feature, fired.window_id, arg_min(near.neighbour, near.rank) AS neighbour,
                min(near.rank) AS rank
            FROM near JOIN fired ON fired.feature = near.neighbour
            GROUP BY ALL
        )
        SELECT feature, rank, neighbour, window_id
        FROM missed ANTI JOIN fired USING (feature, window_id)
        """,
        {
            "sae": sae_id,
            "first": features.start,
            "last": features.stop - 1,
            "split": background.split,
        },
    ).fetchnumpy()
    feature, rank, neighbour = (
        np.asarray(found[name], np.int64) for name in ("feature", "rank", "neighbour")
    )
    # Rows of the background are in the order of hashes.
    row = background.rows_of(np.asarray(found["window_id"], np.uint64))
    order = np.lexsort((row, rank, feature))
    feature, rank, neighbour, row = feature[order], rank[order], neighbour[order], row[order]
    order = np.lexsort((rank, _place_in_run(feature, rank), feature))
    begins = np.searchsorted(feature, [*features, features.stop])
    misses: dict[int, NearMisses] = {}
    for number, begin, end in zip(features, begins[:-1], begins[1:], strict=True):
        chosen = order[begin : min(end, begin + n)]
        misses[number] = NearMisses(background.windows.take(row[chosen]), neighbour[chosen])
    return misses


def _place_in_run(*keys: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Of sorted rows, the place of each among those that have the same keys, from 0."""
    n = len(keys[0])
    is_first = np.ones(n, np.bool_)
    is_first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    begins = np.flatnonzero(is_first)
    return np.arange(n) - np.repeat(begins, np.diff([*begins, n]))
