"""The token lookup: each token's mean activation, shrunken, and what it predicts."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.label.token_lookup import (
    SHRINKAGE_TOKENS,
    TokenLookup,
    TokenMean,
    fit_token_lookup,
)
from scopenote.store.records import FeatureContexts

from .planted_feature import make_contexts, make_random_contexts, make_stratum


def fit_slowly(contexts: FeatureContexts) -> tuple[dict[int, float], float]:
    """Token by token, in dictionaries."""
    weight, weight_squared, activation = (defaultdict(float) for _ in range(3))
    for stratum in (contexts.active, contexts.silent):
        rows = zip(stratum.windows.token_ids, stratum.activations, stratum.weights, strict=True)
        for token_ids, activations, w in rows:
            for token_id, t in zip(token_ids.tolist(), activations.tolist(), strict=True):
                if token_id >= 0:
                    weight[token_id] += w
                    weight_squared[token_id] += w * w
                    activation[token_id] += w * t
    mu = sum(activation.values()) / sum(weight.values())
    means = {}
    for token_id, total in weight.items():
        n = total**2 / weight_squared[token_id]
        own = activation[token_id] / total
        means[token_id] = mu + (own - mu) * n / (n + SHRINKAGE_TOKENS)
    return means, mu


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 60))
def test_it_agrees_with_dictionaries(seed: int, n_active: int, n_silent: int) -> None:
    contexts = make_random_contexts(seed, "explain", n_active=n_active, n_silent=n_silent)
    lookup = fit_token_lookup(contexts)
    means, mu = fit_slowly(contexts)
    assert lookup.global_mean == pytest.approx(mu)
    assert lookup.token_ids.tolist() == sorted(means)
    assert lookup.means == pytest.approx([means[token] for token in sorted(means)], rel=1e-6)


def test_a_mean_is_shrunken_by_what_it_was_seen_on() -> None:
    # Token 1 stands for 2 windows, once active at 6; tokens 2 and 3 for the other 10.
    active = make_stratum([[1, 2]], [[6.0, 0.0]], population=2)
    silent = make_stratum([[2, 3], [2, 3]], population=8, first_id=9)
    lookup = fit_token_lookup(make_contexts(active, silent))
    mu = 2 * 6 / 20
    trust = 1 / (1 + SHRINKAGE_TOKENS)
    assert lookup.global_mean == pytest.approx(mu)
    assert lookup.means[0] == pytest.approx(mu + (6 - mu) * trust)
    n = 10**2 / (2**2 + 4**2 + 4**2)
    assert lookup.means[1] == pytest.approx(mu - mu * n / (n + SHRINKAGE_TOKENS))


def test_a_token_never_seen_is_expected_at_the_mean_and_padding_at_zero() -> None:
    means = np.array([2.0, 7.0], np.float32)
    lookup = TokenLookup(np.array([3, 5], np.int32), means, np.array([4, 1]), 0.5)
    predicted = lookup.predict(np.array([[3, 4, 5], [6, 900, -1]], np.int32))
    assert predicted.dtype == np.float32
    assert predicted.tolist() == [[2.0, 0.5, 7.0], [0.5, 0.5, 0.0]]


def test_with_nothing_seen_every_token_is_expected_at_zero() -> None:
    nothing = make_stratum([])
    lookup = fit_token_lookup(make_contexts(nothing, nothing))
    assert len(lookup.token_ids) == 0
    assert lookup.predict(np.array([[0, 7, -1]], np.int32)).tolist() == [[0.0, 0.0, 0.0]]
    assert lookup.strongest(3) == ()


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 40))
def test_the_strongest_come_by_mean_and_then_by_token(means: list[int], n: int) -> None:
    token_ids = 2 * np.arange(len(means), dtype=np.int32)
    lookup = TokenLookup(token_ids, np.array(means, np.float32), token_ids + 1, 1.0)
    ranked = sorted(zip(means, token_ids.tolist(), strict=True), key=lambda one: (-one[0], one[1]))
    expected = [TokenMean(token, mean, token + 1) for mean, token in ranked[:n]]
    assert lookup.strongest(n) == tuple(expected)
