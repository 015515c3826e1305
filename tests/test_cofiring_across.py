"""Firing together across SAEs and runs, against a dense twin of tokens by features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.store import cofiring_across as module
from scopenote.store.cofiring import add_cofiring
from scopenote.store.cofiring_across import count_together, share_text
from scopenote.store.facts import set_meta
from scopenote.store.records import FeatureId
from scopenote.store.schema import MIGRATIONS

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

OWN, OTHER = "toy/1-res", "toy/2-res"


@dataclass(frozen=True)
class Pool:
    """Windows by their first token, and what fires at each of their tokens."""

    lengths: dict[int, int]
    fires: dict[str, dict[int, np.ndarray]]


def draw_pool(rng: np.random.Generator, windows: dict[int, int], widths: dict[str, int]) -> Pool:
    fires = {
        sae_id: {
            name: rng.random((length, width)) < rng.choice([0.02, 0.3, 0.9], width)
            for name, length in windows.items()
        }
        for sae_id, width in widths.items()
    }
    return Pool(windows, fires)


def make_database(pool: Pool, ids_from: int = 100) -> duckdb.DuckDBPyConnection:
    """A run with this background; window ids are its own, as of another tokenizer's name."""
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    set_meta(connection, "merged_part", "first")
    for sae_id, of_windows in pool.fires.items():
        width = next(iter(of_windows.values())).shape[1]
        connection.execute("INSERT INTO saes (sae_id, width) VALUES (?, ?)", [sae_id, width])
    for number, (name, length) in enumerate(pool.lengths.items()):
        connection.execute(
            "INSERT INTO windows (window_id, token_ids, split, is_background) "
            "VALUES (?, ?, 'score', true), (?, ?, 'score', false)",
            [ids_from - number, [name] + [7] * (length - 1), 5000 + number, [name] * length],
        )
        for sae_id, of_windows in pool.fires.items():
            for feature, at in enumerate(of_windows[name].T):
                if at.any():
                    places = np.flatnonzero(at).tolist()
                    connection.execute(
                        "INSERT INTO background VALUES (?, ?, ?, ?, ?, 'score')",
                        [sae_id, feature, ids_from - number, places, [1.0] * len(places)],
                    )
    return connection


def columns(pool: Pool, sae_id: str, shared: list[int]) -> np.ndarray:
    return np.concatenate([pool.fires[sae_id][name] for name in shared])


@st.composite
def pools(draw: st.DrawFn) -> tuple[Pool, Pool, int]:
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    lengths = {name: draw(st.integers(1, 7)) for name in range(20, 26)}
    here = dict(list(lengths.items())[: draw(st.integers(1, 6))])
    there = dict(list(lengths.items())[draw(st.integers(0, 3)) :])
    own = draw_pool(rng, here, {OWN: 3})
    return own, draw_pool(rng, there, {OTHER: draw(st.integers(1, 9))}), draw(st.integers(0, 2))


@settings(max_examples=12, deadline=None)
@given(drawn=pools())
def test_counts_are_those_of_the_dense_twin_over_windows_that_both_have(
    drawn: tuple[Pool, Pool, int],
) -> None:
    own, other, feature = drawn
    shared = [name for name in own.lengths if name in other.lengths]
    with make_database(own) as here, make_database(other, 900) as there:
        found = share_text(here, FeatureId(OWN, feature), there)
        together = count_together(there, found, OTHER)
    assert found.n_windows == len(shared)
    assert found.n_tokens == sum(own.lengths[name] for name in shared)
    if not shared:
        assert np.isnan(together.phi).all()
        return
    mine, theirs = columns(own, OWN, shared)[:, feature], columns(other, OTHER, shared)
    assert found.n_active == mine.sum()
    for number, column in enumerate(theirs.T):
        both, either = (mine & column).sum(), (mine | column).sum()
        assert together.n_together[number] == both
        assert together.n_active[number] == column.sum()
        varies = 0 < mine.sum() < len(mine) and 0 < column.sum() < len(column)
        if varies:
            assert together.phi[number] == pytest.approx(np.corrcoef(mine, column)[0, 1])
        else:
            assert np.isnan(together.phi[number])
        if either:
            assert together.jaccard[number] == pytest.approx(both / either)
        else:
            assert np.isnan(together.jaccard[number])


@pytest.fixture
def run() -> Iterator[tuple[Pool, duckdb.DuckDBPyConnection]]:
    pool = draw_pool(
        np.random.default_rng(3), {name: 6 for name in range(20, 40)}, {OWN: 6, OTHER: 6}
    )
    with make_database(pool) as connection:
        yield pool, connection


def test_within_an_sae_it_is_what_its_neighbours_are_found_by(
    run: tuple[Pool, duckdb.DuckDBPyConnection],
) -> None:
    _, connection = run
    add_cofiring(connection, OWN, 5)
    for feature in range(6):
        rows = connection.execute(
            "SELECT neighbour, value, n_together FROM neighbours WHERE feature = ?", [feature]
        ).fetchall()
        shared = share_text(connection, FeatureId(OWN, feature), connection)
        together = count_together(connection, shared, OWN)
        assert together.phi[feature] == pytest.approx(1)
        for neighbour, phi, n_together in rows:
            assert together.phi[neighbour] == pytest.approx(phi)
            assert together.n_together[neighbour] == n_together


def test_rows_read_some_at_a_time_are_the_same(
    run: tuple[Pool, duckdb.DuckDBPyConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, connection = run
    shared = share_text(connection, FeatureId(OWN, 2), connection)
    whole = count_together(connection, shared, OTHER)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 3)
    some = count_together(connection, shared, OTHER)
    np.testing.assert_array_equal(some.n_together, whole.n_together)
    np.testing.assert_array_equal(some.n_active, whole.n_active)


def test_a_feature_that_never_fires_is_correlated_with_none(
    run: tuple[Pool, duckdb.DuckDBPyConnection],
) -> None:
    _, connection = run
    connection.execute("DELETE FROM background WHERE sae_id = ? AND feature = 4", [OWN])
    shared = share_text(connection, FeatureId(OWN, 4), connection)
    assert (shared.n_active, shared.n_tokens) == (0, 120)
    assert np.isnan(count_together(connection, shared, OTHER).phi).all()


def test_the_same_tokens_in_another_split_are_other_text(
    run: tuple[Pool, duckdb.DuckDBPyConnection],
) -> None:
    pool, connection = run
    with make_database(pool) as there:
        there.execute("UPDATE windows SET split = 'select'")
        assert share_text(connection, FeatureId(OWN, 0), there).n_windows == 0
