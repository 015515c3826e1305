"""Neighbours by cosine, against a dense twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scopenote.extract import decoder_neighbours as module
from scopenote.extract.decoder_neighbours import nearest_by_cosine, neighbours_table
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae

from .tiny_gemma import save_tiny_sae, tiny_config


@pytest.fixture(params=[3, 1024])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEATURES_AT_ONCE", request.param)
    monkeypatch.setattr(module, "_OTHERS_AT_ONCE", 2 * request.param + 1)


def sae_with(decoder: np.ndarray, folder: Path) -> Sae:
    file = save_tiny_sae(folder, "res", 1, len(decoder), 16, l0=1)
    sae = load_sae(locate_sae(str(file), "tiny-gemma-2"), tiny_config())
    return replace(sae, decoder=torch.from_numpy(decoder.astype(np.float32)))


def table_of(sae: Sae, k: int = 10) -> dict[int, list[tuple[int, int, float]]]:
    features = range(sae.width)
    rows: dict[int, list[tuple[int, int, float]]] = {}
    for row in neighbours_table(features, nearest_by_cosine(sae, features, k)).to_pylist():
        rows.setdefault(row["feature"], []).append((row["rank"], row["neighbour"], row["value"]))
    return rows


@pytest.mark.usefixtures("blocks")
def test_the_nearest_are_those_of_the_dense_twin(tmp_path: Path) -> None:
    decoder = np.random.default_rng(0).standard_normal((40, 16))
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    found = table_of(sae_with(decoder, tmp_path))
    for feature in range(40):
        ranks, neighbours, values = zip(*found[feature], strict=True)
        assert ranks == tuple(range(1, 11))
        assert list(neighbours) == np.argsort(-cosines[feature])[:10].tolist()
        assert values == pytest.approx(-np.sort(-cosines[feature])[:10], abs=1e-6)


@pytest.mark.usefixtures("blocks")
def test_equal_cosines_are_decided_by_feature_number(tmp_path: Path) -> None:
    axes = np.zeros((20, 16))
    axes[np.arange(20), np.arange(20) % 4] = 1 + np.arange(20)
    found = table_of(sae_with(axes, tmp_path), k=6)
    same = [other for other in range(20) if other % 4 == 1 and other != 9]
    others = [other for other in range(20) if other % 4 != 1]
    assert [neighbour for _, neighbour, _ in found[9]] == [*same, *others][:6]


@pytest.mark.usefixtures("blocks")
def test_a_decoder_row_of_zeros_neither_has_neighbours_nor_is_one(tmp_path: Path) -> None:
    decoder = np.random.default_rng(1).standard_normal((9, 16))
    decoder[4] = 0
    found = table_of(sae_with(decoder, tmp_path))
    assert set(found) == set(range(9)) - {4}
    assert all(neighbour != 4 for rows in found.values() for _, neighbour, _ in rows)
    assert all(len(rows) == 7 for rows in found.values())


@pytest.mark.usefixtures("blocks")
def test_an_opposite_direction_is_the_farthest(tmp_path: Path) -> None:
    decoder = np.zeros((3, 16))
    decoder[:, 0] = (2, -3, 1)
    found = table_of(sae_with(decoder, tmp_path))
    assert found[0] == [(1, 2, 1.0), (2, 1, -1.0)]
