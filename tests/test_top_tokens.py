"""The tokens at which a feature is strongest: from the tables, against a slow twin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.extract import windows
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.sketches import SketchSizes
from scopenote.flows.describe_features import describe_features
from scopenote.label.token_lookup import SHRINKAGE_TOKENS
from scopenote.label.top_tokens import top_tokens
from scopenote.store.database import open_work
from scopenote.store.run_folder import RunFolder
from scopenote.store.strongest_tokens import missing_top_tokens

from .brute_force import make_job
from .planted_feature import make_contexts, make_random_contexts, make_stratum
from .test_decoder_effects import SHAPE, collect_and_absorb, config_with, never, quiet
from .test_token_lookup import fit_slowly

# Few enough that samples and pool stand for more than they hold.
SIZES = SketchSizes(top=(2, 1, 2), sample=(3, 3, 3), background=(6, 6, 6))
QUERY = (
    "SELECT sae_id, feature, top_tokens, top_token_means, top_token_counts FROM features "
    "ORDER BY sae_id, feature"
)
Rows = list[tuple[Any, ...]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 60), st.integers(1, 12))
def test_they_are_the_means_above_the_mean_of_all_tokens_largest_first(
    seed: int, n_active: int, n_silent: int, n: int
) -> None:
    contexts = make_random_contexts(seed, "explain", n_active=n_active, n_silent=n_silent)
    means, mu = fit_slowly(contexts)
    found = top_tokens(contexts, n)
    above = sorted((mean for mean in means.values() if mean > mu * (1 + 1e-6)), reverse=True)[:n]
    assert [token.mean for token in found][: len(above)] == pytest.approx(above, rel=1e-5)
    for token in found:
        assert token.mean == pytest.approx(means[token.token_id], rel=1e-5)
        seen = [contexts.active.windows.token_ids, contexts.silent.windows.token_ids]
        assert token.count == sum(int((ids == token.token_id).sum()) for ids in seen)


def test_of_equal_means_the_smaller_token_comes_first_and_a_token_of_no_weight_is_left_out() -> (
    None
):
    active = make_stratum([[9, 4, 7], [4, 9, 7]], [[5, 5, 0], [5, 5, 0]])
    silent = make_stratum([[7, 7, 7]] * 5, first_id=50)
    found = top_tokens(make_contexts(active, silent))
    assert [(token.token_id, token.count) for token in found] == [(4, 2), (9, 2)]
    assert found[0].mean == found[1].mean > 0


def test_a_token_seen_once_beside_a_peak_does_not_pass_one_that_is_followed_every_time() -> None:
    active = make_stratum([[1, 2]] + [[1, 3]] * 20, [[4, 7]] + [[4, 0]] * 20)
    silent = make_stratum([[3, 3]] * 20, first_id=50)
    assert [token.token_id for token in top_tokens(make_contexts(active, silent))] == [1, 2]


def test_a_feature_that_never_fires_has_none() -> None:
    silent = make_stratum([[1, 2]] * 3, first_id=50)
    assert top_tokens(make_contexts(make_stratum([]), silent)) == ()


# --- from a collected corpus --------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "CHUNK_DOCUMENTS", 2)
        yield


@pytest.fixture(scope="module")
def job() -> CollectJob:
    return make_job(3, (4, 3), SHAPE, SIZES)


@pytest.fixture(scope="module")
def whole(job: CollectJob, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("whole"))
    collect_and_absorb(job, folder, slice(None))
    describe(folder)
    return folder


def describe(folder: RunFolder) -> bool:
    config = config_with(logit_effects=False, neighbours=False)
    return describe_features(config, folder, quiet(), never).has_changed


def read(folder: RunFolder, query: str) -> Rows:
    with duckdb.connect(str(folder.path / "work.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def twin(folder: RunFolder) -> Rows:
    """Feature by feature, window by window and token by token, from the rows of the tables."""
    texts = {4: "a", 5: " b"}
    pool = read(
        folder,
        "SELECT window_id, token_ids, copies FROM windows "
        "WHERE is_background AND split = 'explain'",
    )
    rows: Rows = []
    for sae_id, feature, n_silent_windows in read(
        folder,
        "SELECT sae_id, feature, n_windows - n_active_windows FROM feature_splits "
        "WHERE split = 'explain' ORDER BY sae_id, feature",
    ):
        own = f"sae_id = '{sae_id}' AND feature = {feature} AND split = 'explain'"
        sample = read(
            folder,
            "SELECT token_ids, positions, activations, weight FROM contexts c JOIN windows w "
            f"USING (window_id) WHERE {own.replace('split', 'c.split')} AND kind = 'sample'",
        )
        firing = {row[0] for row in read(folder, f"SELECT window_id FROM background WHERE {own}")}
        silent = [(ids, copies) for number, ids, copies in pool if number not in firing]
        all_copies = sum(copies for _, copies in silent)
        seen = [(ids, dict(zip(at, values, strict=True)), w) for ids, at, values, w in sample]
        seen += [(ids, {}, n * n_silent_windows / all_copies) for ids, n in silent]
        weight, squares, activation, count = (defaultdict(float) for _ in range(4))
        for ids, values, w in seen:
            for place, token in enumerate(ids):
                weight[token] += w
                squares[token] += w * w
                activation[token] += w * values.get(place, 0.0)
                count[token] += 1
        mu = sum(activation.values()) / max(sum(weight.values()), 1)
        means = {}
        for token in weight:
            n = weight[token] ** 2 / squares[token] if squares[token] else 0.0
            own_mean = activation[token] / weight[token] if weight[token] else mu
            means[token] = mu + (own_mean - mu) * n / (n + SHRINKAGE_TOKENS)
        best = sorted((-mean, token) for token, mean in means.items() if mean > mu * (1 + 1e-6))
        listed = [token for _, token in best[:10]] if sample else []
        names = [texts.get(token, f"<{token}>") for token in listed]
        rows.append(
            (sae_id, feature, names, [means[t] for t in listed], [count[t] for t in listed])
        )
    return rows


def test_the_tables_hold_what_a_slow_twin_finds_in_them(whole: RunFolder) -> None:
    found, expected = read(whole, QUERY), twin(whole)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    for (*_, means, counts), (*_, other_means, other_counts) in zip(found, expected, strict=True):
        assert means == pytest.approx(other_means, rel=1e-5)
        assert counts == other_counts
    assert sum(len(tokens) for _, _, tokens, *_ in found) > len(found)


def test_more_text_and_nothing_else_has_them_worked_out_again_as_if_all_had_come_at_once(
    job: CollectJob, whole: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    collect_and_absorb(job, folder, slice(0, 2))
    assert describe(folder)
    before = read(folder, QUERY)
    assert not describe(folder)
    collect_and_absorb(job, folder, slice(2, None))
    assert {row[2] for row in read(folder, QUERY)} == {None}
    with open_work(folder.path) as work:
        assert missing_top_tokens(work) == {sae.sae_id: sae.width for sae in job.saes}
    assert describe(folder)
    assert before != read(folder, QUERY) == read(whole, QUERY)
