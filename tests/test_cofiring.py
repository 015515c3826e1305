"""Features that fire together, against a dense twin of tokens by features."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.store import cofiring as module
from scopenote.store.cofiring import add_cofiring, missing_cofiring
from scopenote.store.database import open_work
from scopenote.store.facts import set_meta
from scopenote.store.schema import MIGRATIONS

SAE = "toy/1-res"
Neighbours = dict[int, list[tuple[int, int, float, int]]]


def fill(connection: duckdb.DuckDBPyConnection, fires: np.ndarray, lengths: list[int]) -> None:
    """A database whose background is this: tokens by features, cut into windows."""
    connection.execute(
        "INSERT INTO saes (sae_id, width) VALUES (?, ?), ('other', 3)", [SAE, fires.shape[1]]
    )
    set_meta(connection, "merged_part", "first")
    windows = [(1000 - number, [7] * length, True) for number, length in enumerate(lengths)]
    # A window beside the pool, and one of another SAE, count for nothing.
    windows.append((5, [7] * 4, False))
    connection.executemany(
        "INSERT INTO windows (window_id, token_ids, is_background) VALUES (?, ?, ?)", windows
    )
    connection.execute("INSERT INTO background VALUES ('other', 0, 1000, [0], [1], 'score')")
    begins = np.cumsum([0, *lengths])
    rows = [
        (SAE, feature, 1000 - number, at.tolist(), [1.0] * len(at))
        for number in range(len(lengths))
        for feature in range(fires.shape[1])
        if len(at := np.flatnonzero(fires[begins[number] : begins[number + 1], feature]))
    ]
    if rows:
        connection.executemany(
            "INSERT INTO background (sae_id, feature, window_id, positions, activations) "
            "VALUES (?, ?, ?, ?, ?)",
            rows,
        )


def twin(fires: np.ndarray, k: int) -> Neighbours:
    """The definition, pair by pair, in Python's own integers."""
    n_tokens, n_features = fires.shape
    found: Neighbours = {}
    for of in range(n_features):
        pairs = []
        for other in range(n_features):
            n, m = int(fires[:, of].sum()), int(fires[:, other].sum())
            both = int((fires[:, of] & fires[:, other]).sum())
            if other != of and n_tokens * both > n * m:
                phi = (n_tokens * both - n * m) / np.sqrt(
                    float(n * (n_tokens - n)) * float(m * (n_tokens - m))
                )
                pairs.append((-phi, other, both))
        if pairs:
            found[of] = [
                (rank, other, -phi, both)
                for rank, (phi, other, both) in enumerate(sorted(pairs)[:k], start=1)
            ]
    return found


def stored(connection: duckdb.DuckDBPyConnection, kind: str = "cofiring") -> Neighbours:
    rows = connection.execute(
        "SELECT feature, rank, neighbour, value, n_together FROM neighbours "
        "WHERE sae_id = ? AND kind = ? ORDER BY feature, rank",
        [SAE, kind],
    ).fetchall()
    found: Neighbours = {}
    for feature, rank, neighbour, value, n_together in rows:
        found.setdefault(feature, []).append((rank, neighbour, value, n_together))
    return found


@st.composite
def firings(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    n_features = draw(st.integers(1, 8))
    shares = st.sampled_from([0.0, 0.1, 0.5, 1.0])
    share = np.array([draw(shares) for _ in range(n_features)])
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return rng.random((sum(lengths), n_features)) < share, lengths


@settings(max_examples=12, deadline=None)
@given(drawn=firings(), k=st.integers(1, 4))
def test_neighbours_are_those_of_the_dense_twin(
    drawn: tuple[np.ndarray, list[int]], k: int
) -> None:
    fires, lengths = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TASKS", 3)
        with duckdb.connect() as connection:
            for migration in MIGRATIONS:
                connection.execute(migration.sql)
            fill(connection, fires, lengths)
            add_cofiring(connection, SAE, k)
            assert stored(connection) == twin(fires, k)


def test_the_measure_is_pearsons_correlation_of_firing() -> None:
    rng = np.random.default_rng(0)
    common = rng.random((500, 1)) < 0.2
    fires = (rng.random((500, 6)) < 0.1) | (common & (rng.random((500, 6)) < 0.5))
    correlation = np.corrcoef(fires.T.astype(float))
    for feature, rows in twin(fires, 10).items():
        for _, other, value, _ in rows:
            assert value == pytest.approx(correlation[feature, other])


def test_two_features_that_always_fire_together_have_a_phi_of_exactly_one(tmp_path: Path) -> None:
    fires = np.zeros((30, 3), bool)
    fires[[3, 5, 11], 0] = fires[[3, 5, 11], 2] = True
    with open_work(tmp_path) as work:
        fill(work, fires, [10, 20])
        add_cofiring(work, SAE)
        assert stored(work) == {0: [(1, 2, 1.0, 3)], 2: [(1, 0, 1.0, 3)]}


def test_counting_again_replaces_and_is_asked_for_when_the_text_changes(tmp_path: Path) -> None:
    fires = np.random.default_rng(0).random((40, 5)) < 0.4
    with open_work(tmp_path) as work:
        fill(work, fires, [40])
        work.execute("INSERT INTO neighbours VALUES (?, 0, 'cosine', 1, 2, 0.5, NULL)", [SAE])
        assert missing_cofiring(work) == ["other", SAE]
        for _ in range(2):
            add_cofiring(work, SAE)
            assert stored(work) == twin(fires, 10)
        assert missing_cofiring(work) == ["other"]
        assert stored(work, "cosine") == {0: [(1, 2, 0.5, None)]}
        set_meta(work, "merged_part", "second")
        assert missing_cofiring(work) == ["other", SAE]
