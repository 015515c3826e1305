"""Windows of neighbours in which a feature is silent, beside the slow obvious way to find them."""

from __future__ import annotations

from collections import defaultdict

import duckdb
import numpy as np
import pytest
from scopenote.store.contexts import load_background
from scopenote.store.near_misses import read_near_misses

from .made_up_neighbours import LONELY, N_FEATURES, OTHER, SAE, SILENT, make_neighbours

Found = dict[int, list[tuple[int, int]]]


def find_slowly(
    connection: duckdb.DuckDBPyConnection, sae_id: str, split: str, n: int
) -> dict[int, list[tuple[int, int]]]:
    """Window and neighbour of each near miss, feature by feature and window by window."""
    hashes = dict(connection.execute("SELECT window_id, token_hash FROM windows").fetchall())
    fires: dict[int, set[int]] = defaultdict(set)
    for feature, window in connection.execute(
        "SELECT feature, window_id FROM background WHERE sae_id = ? AND split = ?", [sae_id, split]
    ).fetchall():
        fires[feature].add(window)
    found: Found = {}
    for feature in range(N_FEATURES):
        near = connection.execute(
            "SELECT neighbour FROM neighbours WHERE sae_id = ? AND feature = ? AND kind = 'cosine' "
            "ORDER BY rank",
            [sae_id, feature],
        ).fetchall()
        queues: dict[int, list[int]] = {}
        taken = set(fires[feature])
        for (neighbour,) in near:
            queues[neighbour] = sorted(fires[neighbour] - taken, key=hashes.__getitem__)
            taken |= fires[neighbour]
        chosen: list[tuple[int, int]] = []
        while any(queues.values()):
            for neighbour, queue in queues.items():
                if queue:
                    chosen.append((queue.pop(0), neighbour))
        found[feature] = chosen[:n]
    return found


def read(
    connection: duckdb.DuckDBPyConnection, sae_id: str, split: str, features: range, n: int
) -> Found:
    misses = read_near_misses(connection, sae_id, features, load_background(connection, split), n)
    return {
        feature: list(zip(each.windows.window_id.tolist(), each.neighbour.tolist(), strict=True))
        for feature, each in misses.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_near_misses_are_those_that_the_slow_way_finds(seed: int) -> None:
    connection = make_neighbours(seed)
    for sae_id, split, n in ((SAE, "score", 12), (OTHER, "score", 500), (SAE, "select", 3)):
        slowly = find_slowly(connection, sae_id, split, n)
        assert read(connection, sae_id, split, range(N_FEATURES), n) == slowly
        assert any(len(each) == n for each in slowly.values()) or n == 500
        assert sum(map(bool, slowly.values())) > 30


def test_a_feature_has_the_same_near_misses_whichever_others_are_read_with_it() -> None:
    connection = make_neighbours(4)
    whole = read(connection, SAE, "score", range(N_FEATURES), 10)
    parts = {}
    for begin in range(0, N_FEATURES, 7):
        features = range(begin, min(begin + 7, N_FEATURES))
        parts |= read(connection, SAE, "score", features, 10)
    assert parts == whole


def test_the_feature_is_silent_in_all_of_them_and_the_neighbour_fires() -> None:
    connection = make_neighbours(5)
    background = load_background(connection, "score")
    fires = set(
        connection.execute(
            "SELECT feature, window_id FROM background WHERE sae_id = ?", [SAE]
        ).fetchall()
    )
    misses = read_near_misses(connection, SAE, range(N_FEATURES), background, 40)
    for feature, each in misses.items():
        names = each.windows.window_id.tolist()
        assert len(set(names)) == len(names)
        assert not {(feature, name) for name in names} & fires
        assert {*zip(each.neighbour.tolist(), names, strict=True)} <= fires
        assert np.isin(names, background.windows.window_id).all()


def test_without_neighbours_there_are_none_and_a_silent_feature_has_its_neighbours_windows() -> (
    None
):
    connection = make_neighbours(6)
    found = read(connection, SAE, "score", range(N_FEATURES), 10)
    assert found[LONELY] == []
    assert len(found[SILENT]) == 10
    assert set(found) == set(range(N_FEATURES))


def test_the_nearest_neighbours_come_first_and_all_have_their_turn() -> None:
    connection = make_neighbours(7)
    ranks = {
        (feature, neighbour): rank
        for feature, neighbour, rank in connection.execute(
            "SELECT feature, neighbour, rank FROM neighbours WHERE sae_id = ? AND kind = 'cosine'",
            [SAE],
        ).fetchall()
    }
    found = read(connection, SAE, "score", range(N_FEATURES), 60)
    spread = 0
    for feature, chosen in found.items():
        order = [ranks[feature, neighbour] for _, neighbour in chosen]
        n_neighbours = len(set(order))
        assert order[:n_neighbours] == sorted(set(order))
        spread += n_neighbours > 3
    assert spread > 20


def test_an_empty_pool_gives_no_near_misses() -> None:
    connection = make_neighbours(8)
    connection.execute("DELETE FROM windows")
    connection.execute("DELETE FROM background")
    assert read(connection, SAE, "score", range(3), 10) == {0: [], 1: [], 2: []}
