"""Which labels a feature's own is told apart from, and where it fires without those features."""

from __future__ import annotations

import duckdb
import numpy as np
from scopenote.store.contexts import load_background
from scopenote.store.rival_labels import Rivals, read_rivals

from .made_up_neighbours import LONELY, N_FEATURES, SAE, SILENT, add_label, make_neighbours


def read(
    connection: duckdb.DuckDBPyConnection, features: range = range(N_FEATURES), n: int = 4
) -> dict[int, Rivals]:
    background = load_background(connection, "score")
    return read_rivals(connection, SAE, features, "highlighted", background, n)


def near(connection: duckdb.DuckDBPyConnection, feature: int) -> list[tuple[int, float]]:
    return connection.execute(
        "SELECT neighbour, value FROM neighbours WHERE sae_id = ? AND feature = ? "
        "AND kind = 'cosine' ORDER BY rank",
        [SAE, feature],
    ).fetchall()


def test_the_nearest_neighbours_that_have_a_label_are_the_rivals() -> None:
    connection = make_neighbours(0)
    labelled = [feature for feature in range(N_FEATURES) if feature % 3]
    for feature in range(N_FEATURES):
        add_label(connection, feature, f"label {feature}" if feature % 3 else None)
    found = read(connection)
    for feature in range(N_FEATURES):
        expected = [each for each in near(connection, feature) if each[0] in labelled][:4]
        labels = found[feature].labels if feature in found else ()
        assert [(each.feature, each.cosine) for each in labels] == expected
        assert [each.text for each in labels] == [f"label {other}" for other, _ in expected]
    assert LONELY not in found
    assert all(len(each.labels) <= 2 for each in read(connection, n=2).values())


def test_the_same_explainer_is_taken_where_it_can_be_and_else_the_label_in_force() -> None:
    connection = make_neighbours(1)
    (first, _), (second, _), (third, _), *_ = near(connection, 0)
    add_label(connection, first, "token list", explainer="token_lookup", select=0.9)
    add_label(connection, first, "words", select=0.1)
    add_label(connection, second, "only a list", explainer="token_lookup")
    add_label(connection, third, "worse words", select=0.2, label_id="a")
    add_label(connection, third, "better words", select=0.6, label_id="b")
    add_label(connection, third, "a human's", explainer="by-hand", source="human")
    labels = read(connection, range(1))[0].labels
    assert [(each.text, each.explainer) for each in labels] == [
        ("words", "highlighted"),
        ("only a list", "token_lookup"),
        ("better words", "highlighted"),
    ]


def test_windows_are_apart_where_no_rival_fires_and_shared_where_one_does() -> None:
    connection = make_neighbours(2)
    for feature in range(N_FEATURES):
        add_label(connection, feature, f"label {feature}")
    hashes = dict(connection.execute("SELECT window_id, token_hash FROM windows").fetchall())
    fires: dict[int, set[int]] = {feature: set() for feature in range(N_FEATURES)}
    for feature, window in connection.execute(
        "SELECT feature, window_id FROM background WHERE sae_id = ? AND split = 'score'", [SAE]
    ).fetchall():
        fires[feature].add(hashes[window])
    n_apart = n_shared = 0
    for feature, rivals in read(connection).items():
        others = set().union(*(fires[each.feature] for each in rivals.labels))
        assert set(rivals.apart.tolist()) == fires[feature] - others
        assert set(rivals.shared.tolist()) == fires[feature] & others
        n_apart += len(rivals.apart)
        n_shared += len(rivals.shared)
    assert min(n_apart, n_shared) > 50
    assert not len(
        np.concatenate([read(connection)[SILENT].apart, read(connection)[SILENT].shared])
    )


def test_without_any_label_nobody_has_rivals() -> None:
    assert read(make_neighbours(3)) == {}
