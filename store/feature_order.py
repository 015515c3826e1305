"""The background's firings from the order of windows to that of features, in compiled code.

A module of its own, imported where it is used: the compiler takes half a second to load.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pyarrow as pa

from .background import join_arrays

# Features whose rows are written side by side: more would scatter over too many pages of memory.
_TILE = 256


def by_feature(windows: pa.Table) -> pa.Table:
    """The rows of the database's background, by feature, from rows by window.

    Args:
        windows: window_id and the arrays of `background.FIRING_ARRAYS`.

    Returns:
        feature, window_id, positions and activations; a feature's windows in the table's order.
    """
    feature, begins = join_arrays(windows["feature"], "feature")
    length, _ = join_arrays(windows["length"], "length")
    position, _ = join_arrays(windows["position"], "position")
    activation, _ = join_arrays(windows["activation"], "activation")
    n_features = int(feature.max(initial=-1)) + 1
    of_feature, window, ends, position, activation = _reorder(
        feature, length, position, activation, begins, n_features
    )
    return pa.table(
        {
            "feature": of_feature,
            "window_id": windows["window_id"].to_numpy()[window],
            "positions": pa.LargeListArray.from_arrays(ends, position),
            "activations": pa.LargeListArray.from_arrays(ends, activation),
        }
    )


def _reorder_rows(
    feature: np.ndarray,
    length: np.ndarray,
    position: np.ndarray,
    activation: np.ndarray,
    begins: np.ndarray,
    n_features: int,
) -> tuple[Any, ...]:
    """Rows by window, each with its features rising, to rows by feature.

    Args:
        feature: of each row.
        length: how many firings each row has.
        position: of each firing.
        activation: of each firing.
        begins: each window's first row, and the number of rows at the end.
        n_features: one more than the largest.

    Returns:
        Feature and window of each row, where its firings begin (one more than rows), and the
        firings' positions and activations.
    """
    n_windows = len(begins) - 1
    next_row = np.zeros(n_features + 1, np.int64)
    next_firing = np.zeros(n_features + 1, np.int64)
    for row in range(len(feature)):
        next_row[feature[row] + 1] += 1
        next_firing[feature[row] + 1] += length[row]
    next_row, next_firing = np.cumsum(next_row), np.cumsum(next_firing)
    of_feature, window_of = np.empty(len(feature), np.int32), np.empty(len(feature), np.int32)
    ends = np.zeros(len(feature) + 1, np.int64)
    positions, activations = np.empty_like(position), np.empty_like(activation)
    row_of, firing_of = begins.copy(), np.zeros(n_windows, np.int64)
    for window in range(1, n_windows):
        firings = np.int64(0)
        for row in range(begins[window - 1], begins[window]):
            firings += length[row]
        firing_of[window] = firing_of[window - 1] + firings
    for tile in range(0, n_features, _TILE):
        for window in range(n_windows):
            row, firing = row_of[window], firing_of[window]
            while row < begins[window + 1] and feature[row] < tile + _TILE:
                of = feature[row]
                target, n = next_firing[of], length[row]
                for i in range(n):
                    positions[target + i] = position[firing + i]
                    activations[target + i] = activation[firing + i]
                of_feature[next_row[of]], window_of[next_row[of]] = of, window
                ends[next_row[of] + 1] = target + n
                next_row[of] += 1
                next_firing[of] += n
                firing += n
                row += 1
            row_of[window], firing_of[window] = row, firing
    return of_feature, window_of, ends, positions, activations


# The machine code is kept on disk beside this file, or in the cache of the user.
_reorder = numba.njit(nogil=True, cache=True)(_reorder_rows)
