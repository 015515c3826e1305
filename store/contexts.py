"""Reading what is kept of features, many at a time, as arrays to explain and score with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64, UInt64

from .records import FeatureContexts, FeatureId, Stratum, Windows
from .splits import Split


@dataclass(frozen=True, slots=True)
class BackgroundWindows:
    """The background pool of one split, shared by all features of all SAEs.

    Attributes:
        windows: one row a pool window, in the order of their hashes.
        by_id: the rows in the order of `sorted_ids`, to find a window's row.
    """

    split: Split
    windows: Windows
    sorted_ids: UInt64[np.ndarray, " P"]
    by_id: Int64[np.ndarray, " P"]
    window_tokens: int

    def rows_of(self, window_ids: UInt64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Where these pool windows stand."""
        rows: Int64[np.ndarray, " N"] = self.by_id[np.searchsorted(self.sorted_ids, window_ids)]
        return rows


def load_background(connection: duckdb.DuckDBPyConnection, split: Split) -> BackgroundWindows:
    """The pool windows of a split."""
    longest = connection.execute("SELECT coalesce(max(len(token_ids)), 0) FROM windows").fetchall()
    window_tokens = int(longest[0][0])
    table = connection.sql(
        """
        SELECT window_id, token_hash, doc_id, copies, token_ids FROM windows
        WHERE is_background AND split = $split ORDER BY token_hash, window_id
        """,
        params={"split": split},
    ).to_arrow_table()
    windows = _windows(table, window_tokens)
    by_id = np.argsort(windows.window_id)
    return BackgroundWindows(split, windows, windows.window_id[by_id], by_id, window_tokens)


def read_features(
    connection: duckdb.DuckDBPyConnection,
    sae_id: str,
    features: range,
    background: BackgroundWindows,
) -> Iterator[FeatureContexts]:
    """The kept contexts of consecutive features of one SAE in the background's split, in order."""
    bounds: dict[str, Any] = {
        "sae": sae_id,
        "first": features.start,
        "last": features.stop - 1,
        "split": background.split,
    }
    where = "sae_id = $sae AND feature BETWEEN $first AND $last AND split = $split"
    counts = connection.execute(
        f"""
        SELECT feature, n_windows, n_active_windows, n_tokens, n_active FROM feature_splits
        WHERE {where} ORDER BY feature
        """,
        bounds,
    ).fetchall()
    kept = connection.sql(
        f"""
        SELECT c.feature, c.kind, c.positions, c.activations, coalesce(c.copies, 1) AS copies,
               w.window_id, w.token_hash, w.doc_id, w.token_ids
        FROM (SELECT * FROM contexts WHERE {where}) c JOIN windows w USING (window_id)
        ORDER BY c.feature, c.kind, c.rank
        """,
        params=bounds,
    ).to_arrow_table()
    fired = connection.sql(
        f"SELECT feature, window_id FROM background WHERE {where} ORDER BY feature", params=bounds
    ).to_arrow_table()

    kept_windows = _windows(kept, background.window_tokens)
    kept_activations = _dense(kept, background.window_tokens)
    kept_feature = kept["feature"].to_numpy()
    is_sample = kept["kind"].to_numpy(zero_copy_only=False) == "sample"
    fired_feature = fired["feature"].to_numpy()
    fired_rows = background.rows_of(fired["window_id"].to_numpy())
    for feature, n_windows, n_active_windows, n_tokens, n_active in counts:
        first, last = np.searchsorted(kept_feature, [feature, feature + 1])
        rows = np.arange(first, last)
        sample, top = rows[is_sample[rows]], rows[~is_sample[rows]]
        fires = np.zeros(len(background.windows), np.bool_)
        a, b = np.searchsorted(fired_feature, [feature, feature + 1])
        fires[fired_rows[a:b]] = True
        silent = background.windows.take(~fires)
        yield FeatureContexts(
            feature_id=FeatureId(sae_id, feature),
            split=background.split,
            active=Stratum(kept_windows.take(sample), kept_activations[sample], n_active_windows),
            silent=Stratum(
                silent,
                np.zeros(silent.token_ids.shape, np.float32),
                n_windows - n_active_windows,
            ),
            top=Stratum(kept_windows.take(top), kept_activations[top], len(top)),
            n_windows=n_windows,
            n_active_windows=n_active_windows,
            n_tokens=n_tokens,
            n_active=n_active,
        )


def read_prefixes(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: range, split: Split
) -> dict[int, tuple[int, ...]]:
    """The tokens that the model read before each window kept for these features, by window id.

    They are shown with a window and never scored; at the beginning of a sequence there are none.
    """
    rows = connection.execute(
        """
        SELECT window_id, coalesce(prefix_token_ids, []) FROM windows
        WHERE window_id IN (
            SELECT window_id FROM contexts
            WHERE sae_id = $sae AND feature BETWEEN $first AND $last AND split = $split
        )
        """,
        {"sae": sae_id, "first": features.start, "last": features.stop - 1, "split": split},
    ).fetchall()
    return {window_id: tuple(prefix) for window_id, prefix in rows}


def read_background_prefixes(
    connection: duckdb.DuckDBPyConnection, split: Split
) -> dict[int, tuple[int, ...]]:
    """The tokens that the model read before each pool window of a split, by window id."""
    rows = connection.execute(
        "SELECT window_id, coalesce(prefix_token_ids, []) FROM windows "
        "WHERE is_background AND split = $split",
        {"split": split},
    ).fetchall()
    return {window_id: tuple(prefix) for window_id, prefix in rows}


def _windows(table: pa.Table, window_tokens: int) -> Windows:
    return Windows(
        window_id=table["window_id"].to_numpy(),
        token_hash=table["token_hash"].to_numpy(),
        document=_document_numbers(table["doc_id"]),
        token_ids=_padded(table["token_ids"], window_tokens),
        copies=table["copies"].to_numpy().astype(np.int64),
    )


def _document_numbers(doc_ids: pa.ChunkedArray) -> Int64[np.ndarray, " W"]:
    # The id is a hash in hexadecimal: its first 60 bits are a number that is the document's
    # own, whatever it is read together with.
    distinct = doc_ids.unique().to_pylist()
    number = {doc_id: int(doc_id[:15], 16) for doc_id in distinct}
    return np.array([number[doc_id] for doc_id in doc_ids.to_pylist()], dtype=np.int64)


def _padded(lists: pa.ChunkedArray, width: int) -> Int32[np.ndarray, "W T"]:
    values, window, place = _flat(lists)
    padded = np.full((len(lists), width), -1, dtype=np.int32)
    padded[window, place] = values
    return padded


def _dense(table: pa.Table, width: int) -> Float32[np.ndarray, "W T"]:
    values, window, _ = _flat(table["activations"])
    positions, _, _ = _flat(table["positions"])
    dense = np.zeros((table.num_rows, width), dtype=np.float32)
    dense[window, positions] = values
    return dense


def _flat(lists: pa.ChunkedArray) -> tuple[Any, Any, Any]:
    """The lists' values one after another, with each one's list and place in it."""
    array = lists.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    window = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return array.flatten().to_numpy(zero_copy_only=False), window, place
