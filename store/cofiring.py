"""Which features of an SAE fire at the same tokens of the background, in compiled code.

The measure is the phi coefficient: Pearson's correlation of the two features' firing, as 0 or 1,
over all tokens of the background's windows, each distinct window once. It comes from exact
counts, with N tokens, n and m of them active and b both:

    phi = (N b − n m) / √( n (N − n) · m (N − m) )

Where b is small phi says little, however large it is: two features that fire once each, at the
same token, have a phi of 1. So b stands beside it.

Memory is some eight bytes for each firing of the pool and a few for each feature, so it grows
with neither the corpus nor the square of the width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import duckdb
import numba
import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int32, Int64

from .collected import mark_worked_out, saes_behind
from .facts import transaction

_COFIRING = "cofiring"
_ROWS_AT_ONCE = 1 << 18
# Features are ranked in so many tasks, each with a count for every feature of the SAE.
_TASKS = 256


class Firings(NamedTuple):
    """Which feature fires at which token, from both sides.

    Attributes:
        n_tokens: all, those at which nothing fires among them.
        token_begins: by feature, where its tokens begin, and the end of the last.
        token: the tokens at which each feature fires.
        feature_begins, feature: the same by token.
    """

    n_tokens: int
    token_begins: Int64[np.ndarray, " F+1"]
    token: Int32[np.ndarray, " N"]
    feature_begins: Int64[np.ndarray, " T+1"]
    feature: Int32[np.ndarray, " N"]


class Cofiring(NamedTuple):
    """Neighbours of consecutive features, strongest first; -1 where there are no more."""

    neighbour: Int32[np.ndarray, "F K"]
    value: Float64[np.ndarray, "F K"]
    n_together: Int64[np.ndarray, "F K"]


def missing_cofiring(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The SAEs whose co-firing was not counted in the background as it is now."""
    return saes_behind(connection, _COFIRING)


def add_cofiring(connection: duckdb.DuckDBPyConnection, sae_id: str, k: int = 10) -> None:
    """Writes each feature's k strongest neighbours in the background into `neighbours`.

    Only features that fire together more often than by chance (phi above 0) are neighbours;
    equal ones are decided by feature number. A feature that never fires in the background, or
    at every token, has none.
    """
    rows = cofiring_table(read_firings(connection, sae_id), k)
    connection.register("cofiring_rows", rows)
    with transaction(connection):
        connection.execute(
            "DELETE FROM neighbours WHERE sae_id = ? AND kind = 'cofiring'", [sae_id]
        )
        connection.execute(
            """
            INSERT INTO neighbours
            SELECT ?, feature, 'cofiring', rank, neighbour, value, n_together FROM cofiring_rows
            """,
            [sae_id],
        )
        mark_worked_out(connection, _COFIRING, sae_id)
    connection.unregister("cofiring_rows")


def read_firings(connection: duckdb.DuckDBPyConnection, sae_id: str) -> Firings:
    """An SAE's firings in the background; its tokens are numbered window by window."""
    ((n_features, n_tokens),) = connection.execute(
        """
        SELECT (SELECT width FROM saes WHERE sae_id = ?),
               (SELECT coalesce(sum(len(token_ids)), 0) FROM windows WHERE is_background)
        """,
        [sae_id],
    ).fetchall()
    by_feature, by_token = np.zeros(n_features + 1, np.int64), np.zeros(n_tokens + 1, np.int64)
    # Read twice, counted and then placed: held in between they would take as much again.
    for rows in _read_rows(connection, sae_id):
        _count(*rows, by_feature, by_token)
    token_begins, feature_begins = np.cumsum(by_feature), np.cumsum(by_token)
    token = np.empty(token_begins[-1], np.int32)
    feature = np.empty(token_begins[-1], np.int32)
    next_of_feature, next_of_token = token_begins.copy(), feature_begins.copy()
    for rows in _read_rows(connection, sae_id):
        _place(*rows, next_of_feature, next_of_token, token, feature)
    return Firings(n_tokens, token_begins, token, feature_begins, feature)


def _read_rows(
    connection: duckdb.DuckDBPyConnection, sae_id: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Feature and first token of each row, where its positions begin, and all positions."""
    reader: pa.RecordBatchReader = connection.sql(
        """
        WITH pool AS (
            SELECT window_id,
                   (sum(len(token_ids)) OVER (ORDER BY window_id) - len(token_ids))::BIGINT AS first
            FROM windows WHERE is_background
        )
        SELECT feature, first, positions FROM background JOIN pool USING (window_id)
        WHERE sae_id = $sae
        """,
        params={"sae": sae_id},
    ).to_arrow_reader(_ROWS_AT_ONCE)
    for batch in reader:
        positions = batch["positions"]
        offsets = positions.offsets.to_numpy().astype(np.int64)
        flat = positions.values.to_numpy(zero_copy_only=False)
        yield batch["feature"].to_numpy(), batch["first"].to_numpy(), offsets, flat


def cofiring_table(firings: Firings, k: int) -> pa.Table:
    """Rows by feature: feature, rank from 1, neighbour, value (phi) and n_together."""
    n_features = len(firings.token_begins) - 1
    n_active = np.diff(firings.token_begins)
    variance = n_active * (firings.n_tokens - n_active)

    def rank(features: range) -> pa.Table:
        return _as_rows(
            features, Cofiring(*_rank(*firings, variance, features.start, features.stop, k))
        )

    size = -(-n_features // _TASKS)
    blocks = [range(at, min(at + size, n_features)) for at in range(0, n_features, size)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
        return pa.concat_tables(executor.map(rank, blocks))


def _as_rows(features: range, found: Cofiring) -> pa.Table:
    row, place = np.nonzero(found.neighbour >= 0)
    return pa.table(
        {
            "feature": (row + features.start).astype(np.int32),
            "rank": (place + 1).astype(np.int32),
            "neighbour": found.neighbour[row, place],
            "value": found.value[row, place],
            "n_together": found.n_together[row, place],
        }
    )


def _count_rows(
    features: np.ndarray,
    first: np.ndarray,
    offsets: np.ndarray,
    positions: np.ndarray,
    by_feature: np.ndarray,
    by_token: np.ndarray,
) -> None:
    """Counts each feature's and each token's firings, one place on: sums become beginnings."""
    for row in range(len(features)):
        by_feature[features[row] + 1] += offsets[row + 1] - offsets[row]
        for i in range(offsets[row], offsets[row + 1]):
            by_token[first[row] + positions[i] + 1] += 1


def _place_rows(
    features: np.ndarray,
    first: np.ndarray,
    offsets: np.ndarray,
    positions: np.ndarray,
    next_of_feature: np.ndarray,
    next_of_token: np.ndarray,
    token: np.ndarray,
    feature: np.ndarray,
) -> None:
    """Puts each firing where its feature's and its token's next one goes."""
    for row in range(len(features)):
        of = features[row]
        for i in range(offsets[row], offsets[row + 1]):
            at = first[row] + positions[i]
            token[next_of_feature[of]] = at
            next_of_feature[of] += 1
            feature[next_of_token[at]] = of
            next_of_token[at] += 1


def _rank_features(
    n_tokens: int,
    token_begins: np.ndarray,
    token: np.ndarray,
    feature_begins: np.ndarray,
    feature: np.ndarray,
    variance: np.ndarray,
    start: int,
    stop: int,
    k: int,
) -> tuple[Any, ...]:
    """The neighbours of features `start` to `stop`; `variance` is n (N - n) of each feature."""
    neighbour = np.full((stop - start, k), -1, np.int32)
    value, n_together = np.zeros((stop - start, k)), np.zeros((stop - start, k), np.int64)
    together = np.zeros(len(variance), np.int32)
    met = np.empty(len(variance), np.int32)
    for of in range(start, stop):
        n_met = 0
        for i in range(token_begins[of], token_begins[of + 1]):
            for j in range(feature_begins[token[i]], feature_begins[token[i] + 1]):
                other = feature[j]
                if together[other] == 0:
                    met[n_met] = other
                    n_met += 1
                together[other] += 1
        row, n_active = of - start, token_begins[of + 1] - token_begins[of]
        for i in range(n_met):
            other = met[i]
            both = np.int64(together[other])
            together[other] = 0
            n_other = token_begins[other + 1] - token_begins[other]
            excess = n_tokens * both - n_active * n_other
            if other == of or excess <= 0:
                continue
            phi = excess / np.sqrt(np.float64(variance[of]) * np.float64(variance[other]))
            place = k
            while place > 0 and (
                neighbour[row, place - 1] < 0
                or phi > value[row, place - 1]
                or (phi == value[row, place - 1] and other < neighbour[row, place - 1])
            ):
                place -= 1
                if place + 1 < k:
                    neighbour[row, place + 1] = neighbour[row, place]
                    value[row, place + 1] = value[row, place]
                    n_together[row, place + 1] = n_together[row, place]
            if place < k:
                neighbour[row, place], value[row, place] = other, phi
                n_together[row, place] = both
    return neighbour, value, n_together


# The machine code is kept on disk beside this file, or in the cache of the user.
_compiled = numba.njit(nogil=True, cache=True)
_count, _place, _rank = _compiled(_count_rows), _compiled(_place_rows), _compiled(_rank_features)
