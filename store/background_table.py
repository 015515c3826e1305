"""The background's rows on their way from a part, by window, into the database, by feature."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt64

from .background import FIRING_ARRAYS
from .parts import Part
from .splits import SPLITS

# Windows of the background whose firings are held at once.
_WINDOWS_AT_ONCE = 512
# Threads that insert the background.
_WRITERS = 2


@dataclass(frozen=True, slots=True)
class PoolIds:
    """The windows of the background by split, in the order of their hashes."""

    token_hash: list[UInt64[np.ndarray, " P"]]
    window_id: list[UInt64[np.ndarray, " P"]]

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection) -> PoolIds:
        """Of the table `pool_windows`."""
        columns = [
            connection.execute(
                "SELECT token_hash, window_id FROM pool_windows WHERE split = $split "
                "ORDER BY token_hash",
                {"split": number},
            ).fetchnumpy()
            for number in range(len(SPLITS))
        ]
        return cls(
            [np.asarray(each["token_hash"], np.uint64) for each in columns],
            [np.asarray(each["window_id"], np.uint64) for each in columns],
        )

    def named(self, rows: pa.RecordBatch, split: int) -> pa.Table:
        """A part's rows that lie in the pool, by hash and occurrence, with their window_id."""
        token_hash = rows["token_hash"].to_numpy()
        known = self.token_hash[split]
        place = np.searchsorted(known, token_hash)
        is_known = np.zeros(len(place), np.bool_)
        inside = place < len(known)
        is_known[inside] = known[place[inside]] == token_hash[inside]
        order = np.lexsort((rows["occurrence"].to_numpy(), token_hash))
        order = order[is_known[order]]
        table = pa.Table.from_batches([rows.select(FIRING_ARRAYS)]).take(pa.array(order))
        return table.add_column(0, "window_id", pa.array(self.window_id[split][place[order]]))


def insert_background(
    connection: duckdb.DuckDBPyConnection, merged: Part, number: int, sae_id: str, pool: PoolIds
) -> None:
    """Inserts an SAE's rows into `next_background`, several stretches of windows at a time.

    DuckDB writes what one connection inserts in one thread; so each thread has its own. Which
    stretch comes first in the table is left open: it is read by feature.
    """
    stretches = _OneAtATime(_stretches(merged.file(f"background-{number}"), pool))

    def insert() -> None:
        from .feature_order import by_feature

        with connection.cursor() as cursor:
            for split, windows in stretches:
                cursor.register("firings", by_feature(windows))
                cursor.execute(
                    """
                    INSERT INTO next_background
                    SELECT $sae, feature, window_id, positions, activations, $split FROM firings
                    """,
                    {"sae": sae_id, "split": split},
                ).fetchall()
                cursor.unregister("firings")

    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="background") as executor:
        for written in [executor.submit(insert) for _ in range(_WRITERS)]:
            written.result()


def _stretches(file: Path, pool: PoolIds) -> Iterator[tuple[str, pa.Table]]:
    """An SAE's rows of the background by window, some windows after others, each of one split.

    So memory does not depend on the size of the pool; the table becomes as many runs by feature.
    """
    # Without `pre_buffer`, which holds what was read until the file is closed.
    for rows in pq.ParquetFile(file, pre_buffer=False).iter_batches(_WINDOWS_AT_ONCE):
        of_split = rows["split"].to_numpy()
        for number, split in enumerate(SPLITS):
            windows = pool.named(rows.filter(pa.array(of_split == number)), number)
            if windows.num_rows:
                yield split, windows


T = TypeVar("T")


class _OneAtATime(Iterator[T]):
    """Items for several threads: each gets another, and one of them at a time makes the next."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._making = Lock()

    def __next__(self) -> T:
        with self._making:
            return next(self._items)
