"""Which features of another SAE fire where a feature does: within a run, or between two runs.

The measure is that of `cofiring.py`, the phi coefficient of the two features' firing over the
tokens of the background, from exact counts. Between two runs the tokens are those of the windows
that are in both backgrounds: windows of one split with the same token ids. Runs over the same text
with one seed share nearly all of them. What stands before a window may differ between the runs.

No weights are needed. Memory is a few bytes for each token of the background and each feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from .records import FeatureId

if TYPE_CHECKING:
    import duckdb

    from .database import Store

_ROWS_AT_ONCE = 1 << 18
_SHARED = "shared_pool"


@dataclass(frozen=True, slots=True)
class SharedText:
    """The text on which a feature is compared, as the other run's connection knows it.

    Attributes:
        n_windows: of the background, in both runs.
        fires: whether the feature fires, at each of their tokens.
    """

    n_windows: int
    fires: Bool[np.ndarray, " N"]

    @property
    def n_tokens(self) -> int:
        """Tokens of these windows."""
        return len(self.fires)

    @property
    def n_active(self) -> int:
        """Those at which the feature fires."""
        return int(self.fires.sum())


@dataclass(frozen=True, slots=True)
class FiringTogether:
    """How often each feature of an SAE fires, and how often where the feature does."""

    n_tokens: int
    n_own: int
    n_active: Int64[np.ndarray, " F"]
    n_together: Int64[np.ndarray, " F"]

    @property
    def phi(self) -> Float64[np.ndarray, " F"]:
        """Pearson's correlation of firing, as 0 or 1; NaN where either never or always fires."""
        n, own, other = float(self.n_tokens), float(self.n_own), self.n_active.astype(np.float64)
        excess = n * self.n_together - own * other
        spread = np.sqrt(own * (n - own)) * np.sqrt(other * (n - other))
        found: np.ndarray = np.full(len(other), np.nan)
        np.divide(excess, spread, out=found, where=spread > 0)
        return found

    @property
    def jaccard(self) -> Float64[np.ndarray, " F"]:
        """Tokens at which both fire, of those at which one does; NaN where neither fires."""
        either = (self.n_own + self.n_active - self.n_together).astype(np.float64)
        found: np.ndarray = np.full(len(either), np.nan)
        np.divide(self.n_together, either, out=found, where=either > 0)
        return found


def share_text(
    own: duckdb.DuckDBPyConnection, feature_id: FeatureId, other: duckdb.DuckDBPyConnection
) -> SharedText:
    """Finds the windows that are in the background of both runs, which may be the same one.

    Args:
        own: to the feature's run.
        feature_id: of a feature that was collected there.
        other: to the other run; it keeps a temporary table of these windows.
    """
    pool = own.sql(
        """
        SELECT w.split::VARCHAR AS split, w.token_ids, b.positions
        FROM windows w
        LEFT JOIN (FROM background WHERE sae_id = $1 AND feature = $2) b USING (window_id)
        WHERE w.is_background
        """,
        params=[feature_id.sae_id, feature_id.feature],
    ).to_arrow_table()
    other.register("own_pool", pool)
    other.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE {_SHARED} AS
        SELECT w.window_id, o.positions, len(w.token_ids) AS n_tokens,
            (sum(len(w.token_ids)) OVER (ORDER BY w.window_id) - len(w.token_ids))::BIGINT AS first
        FROM (FROM windows WHERE is_background) w
        JOIN own_pool o ON o.split = w.split::VARCHAR AND o.token_ids = w.token_ids
        """
    ).fetchall()
    other.unregister("own_pool")
    ((n_windows, n_tokens),) = other.execute(
        f"SELECT count(*), coalesce(sum(n_tokens), 0) FROM {_SHARED}"
    ).fetchall()
    fires = np.zeros(int(n_tokens), np.bool_)
    places = other.execute(
        f"SELECT first + unnest(positions) AS place FROM {_SHARED}"
    ).fetchnumpy()["place"]
    fires[np.asarray(places, np.int64)] = True
    return SharedText(int(n_windows), fires)


def count_together(
    other: duckdb.DuckDBPyConnection, shared: SharedText, sae_id: str
) -> FiringTogether:
    """Counts where an SAE's features fire in the text that `share_text` has found.

    Args:
        other: to the SAE's run, as `share_text` left it.
        shared: what it found.
        sae_id: of the SAE.
    """
    ((width,),) = other.execute("SELECT width FROM saes WHERE sae_id = ?", [sae_id]).fetchall()
    n_active, n_together = np.zeros(width, np.int64), np.zeros(width, np.int64)
    for feature, token in _read_firings(other, sae_id):
        n_active += np.bincount(feature, minlength=width)
        n_together += np.bincount(feature[shared.fires[token]], minlength=width)
    return FiringTogether(shared.n_tokens, shared.n_active, n_active, n_together)


def _read_firings(
    connection: duckdb.DuckDBPyConnection, sae_id: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Feature and token of each firing in the shared windows, some rows at a time."""
    reader: pa.RecordBatchReader = connection.sql(
        f"""
        SELECT b.feature, s.first, b.positions
        FROM background b JOIN {_SHARED} s USING (window_id) WHERE b.sae_id = $sae
        """,
        params={"sae": sae_id},
    ).to_arrow_reader(_ROWS_AT_ONCE)
    for batch in reader:
        positions = batch["positions"]
        lengths = np.diff(positions.offsets.to_numpy())
        flat = positions.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        feature = np.repeat(batch["feature"].to_numpy(), lengths)
        yield feature, np.repeat(batch["first"].to_numpy(), lengths) + flat


def is_same_tokenizer(own: Store, other: Store) -> bool:
    """Whether a token id means the same in both runs, which may be the same one."""
    if own is other:
        return True
    here, there = own.token_texts(), other.token_texts()
    return bool(here) and here == there
