"""Contexts of a feature made up by hand, for tests of labels and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scopenote.store.records import FeatureContexts, FeatureId, Stratum, Windows
from scopenote.store.splits import Split

FEATURE = FeatureId("toy/1-res", 7)


def make_stratum(
    texts: Sequence[Sequence[int]],
    activations: Sequence[Sequence[float]] | None = None,
    *,
    population: int | None = None,
    copies: Sequence[int] | None = None,
    first_id: int = 0,
    n_tokens: int = 4,
) -> Stratum:
    """A stratum of these token ids, padded; each window from a document of its own.

    Windows are named from `first_id` on, and their hash is a function of the name.
    """
    n = len(texts)
    token_ids = np.full((n, n_tokens), -1, np.int32)
    truth = np.zeros((n, n_tokens), np.float32)
    for row, text in enumerate(texts):
        token_ids[row, : len(text)] = text
        if activations is not None:
            truth[row, : len(text)] = activations[row]
    window_id = np.arange(first_id, first_id + n, dtype=np.uint64)
    windows = Windows(
        window_id=window_id,
        token_hash=window_id * np.uint64(11400714819323198485),
        document=window_id.astype(np.int64) * 31,
        token_ids=token_ids,
        copies=np.ones(n, np.int64) if copies is None else np.array(copies, np.int64),
    )
    return Stratum(windows, truth, n if population is None else population)


def make_contexts(
    active: Stratum, silent: Stratum, top: Stratum | None = None, split: Split = "explain"
) -> FeatureContexts:
    """Contexts of the planted feature, their counts those of the strata."""
    n_windows = active.population_windows + silent.population_windows
    return FeatureContexts(
        feature_id=FEATURE,
        split=split,
        active=active,
        silent=silent,
        top=make_stratum([]) if top is None else top,
        n_windows=n_windows,
        n_active_windows=active.population_windows,
        n_tokens=n_windows * active.windows.token_ids.shape[1],
        n_active=int(np.count_nonzero(active.activations)),
    )


def make_random_contexts(
    seed: int,
    split: Split,
    *,
    n_active: int = 20,
    n_silent: int = 60,
    n_top: int = 8,
    n_tokens: int = 8,
) -> FeatureContexts:
    """A feature that follows tokens 0 to 2, loosely, in windows of 30 kinds of token."""
    rng = np.random.default_rng(seed)
    first_id = 1_000_000 * (1 + seed)

    def stratum(n: int, fires: bool, population: int, offset: int) -> Stratum:
        texts = rng.integers(0 if fires else 2, 30, (n, n_tokens))
        if fires:
            texts[:, 0] = rng.integers(0, 3, n)
        height = rng.exponential(2, texts.shape) + 1
        truth = np.where((texts < 3) & fires, height * (texts + 1), 0)
        lengths = rng.integers(3, n_tokens + 1, n)
        return make_stratum(
            [text[:length] for text, length in zip(texts, lengths, strict=True)],
            [row[:length] for row, length in zip(truth, lengths, strict=True)],
            population=population,
            copies=rng.integers(1, 3, n),
            first_id=first_id + offset,
            n_tokens=n_tokens,
        )

    top = stratum(n_top, True, n_top, 300_000)
    best_first = np.argsort(-top.activations.max(axis=1), kind="stable")
    return make_contexts(
        stratum(n_active, True, 300, 100_000),
        stratum(n_silent, False, 9_700, 200_000),
        Stratum(top.windows.take(best_first), top.activations[best_first], n_top),
        split,
    )
