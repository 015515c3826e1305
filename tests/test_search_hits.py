"""Searches by meaning: cosines beside plain Python, two rankings as one, and families."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.store.absorb import absorb_results
from scopenote.store.database import Store, open_store, open_work, publish
from scopenote.store.feature_list import FeatureQuery
from scopenote.store.hit_families import SAME_DIRECTION, connected, group_into_families
from scopenote.store.label_vectors import (
    STAGE,
    QueryVector,
    count_lacking,
    count_vectors,
    read_lacking,
    write_vectors,
)
from scopenote.store.run_folder import RunFolder
from scopenote.store.search_hits import DEPTH, fuse, search_labels

from .searched_runs import HIGH, LOW, Said, make_searched_run

DIMENSIONS = 12
SAID = [
    Said(number, f"label {number}", sae=LOW if number % 3 else HIGH, score=number / 100)
    for number in range(80)
]


def unit_vectors(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embed(run: RunFolder, model: str, vectors: dict[str, np.ndarray]) -> None:
    write_vectors(run.parts, model, vectors)
    with open_work(run.path) as work:
        absorb_results(work, run.parts, STAGE)
        publish(work, run.path)


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    rows = unit_vectors(len(SAID), 1)
    return {each.label_id: row for each, row in zip(SAID, rows, strict=True)}


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, vectors: dict[str, np.ndarray]
) -> Iterator[Store]:
    run = make_searched_run(tmp_path_factory.mktemp("vectors") / "run", SAID)
    embed(run, "mine", {key: row for key, row in vectors.items() if key != f"{LOW}:1"})
    embed(run, "theirs", {f"{LOW}:1": unit_vectors(1, 7)[0]})
    with open_store(run.path) as store:
        yield store


@pytest.mark.parametrize(
    "filters",
    # Most of the labels, and so few that they are joined first.
    [FeatureQuery(), FeatureQuery(sae=HIGH), FeatureQuery(min_score=0.75), FeatureQuery(layer=3)],
)
def test_cosines_are_those_computed_one_by_one_whatever_is_filtered(
    store: Store, vectors: dict[str, np.ndarray], filters: FeatureQuery
) -> None:
    query = [float(value) for value in unit_vectors(1, 2)[0]]
    with store.cursor() as cursor:
        found = search_labels(cursor, "zzz", filters, QueryVector("mine", query))
        labels = dict(cursor.execute("SELECT place, label_id FROM current_features").fetchall())
    wanted = {
        each.label_id: sum(a * float(b) for a, b in zip(query, vectors[each.label_id], strict=True))
        for each in SAID
        if each.sae.startswith(filters.sae)
        and (filters.layer is None or each.sae == HIGH)
        and (each.score or 0) >= (filters.min_score or 0)
    }
    n_without = int(wanted.pop(f"{LOW}:1", None) is not None)
    assert found.n_without_vector == n_without
    assert {labels[hit.place]: hit.cosine for hit in found.hits} == {
        key: pytest.approx(value, abs=1e-5) for key, value in wanted.items()
    }
    assert [labels[hit.place] for hit in found.hits] == sorted(wanted, key=lambda k: -wanted[k])


def test_models_are_never_compared_with_each_other(store: Store) -> None:
    query = QueryVector("theirs", unit_vectors(1, 7)[0].tolist())
    with store.cursor() as cursor:
        found = search_labels(cursor, "zzz", FeatureQuery(), query)
        counts = {each.model: (each.n, each.dimensions) for each in count_vectors(cursor)}
    assert [hit.cosine for hit in found.hits] == [pytest.approx(1, abs=1e-5)]
    assert found.n_without_vector == len(SAID) - 1
    assert counts == {"mine": (len(SAID) - 1, DIMENSIONS), "theirs": (1, DIMENSIONS)}


def test_a_label_without_a_vector_is_found_by_text_all_the_same(store: Store) -> None:
    query = QueryVector("mine", unit_vectors(1, 2)[0].tolist())
    with store.cursor() as cursor:
        found = search_labels(cursor, "label 1", FeatureQuery(), query)
        ((place,),) = cursor.execute(
            f"SELECT place FROM current_features WHERE label_id = '{LOW}:1'"
        ).fetchall()
    (hit,) = [hit for hit in found.hits if hit.place == place]
    assert (hit.text_rank, hit.meaning_rank, hit.cosine) == (1, None, None)


def test_what_lacks_a_vector_is_read_in_the_order_of_features_and_each_once(store: Store) -> None:
    with store.cursor() as cursor:
        assert count_lacking(cursor, "mine") == 1
        assert [each.label_id for each in read_lacking(cursor, "mine", 9, -1)] == [f"{LOW}:1"]
        assert count_lacking(cursor, "new") == len(SAID)
        first = read_lacking(cursor, "new", 50, -1)
        rest = read_lacking(cursor, "new", 50, first[-1].place)
    assert [each.place for each in [*first, *rest]] == list(range(len(SAID)))


def test_a_label_that_was_changed_has_no_vector_until_it_gets_one(tmp_path: Path) -> None:
    run = make_searched_run(tmp_path / "run", SAID[:2])
    embed(
        run, "m", {each.label_id: row for each, row in zip(SAID, unit_vectors(2, 0), strict=False)}
    )
    with open_work(run.path) as work:
        assert count_lacking(work, "m") == 0
        work.execute("UPDATE labels SET label_id = 'another', text = 'b' WHERE feature = 1")
        publish_again(work, run)
        assert [each.label_id for each in read_lacking(work, "m", 9, -1)] == ["another"]


def publish_again(work: duckdb.DuckDBPyConnection, run: RunFolder) -> None:
    work.execute("UPDATE meta SET value = 'later' WHERE key = 'revision'")
    publish(work, run.path)


def test_what_a_label_rests_on_is_part_of_its_meaning_but_figures_are_not(tmp_path: Path) -> None:
    said = [
        Said(0, "doubt", "hedges"),
        Said(1, "same", "same"),
        Said(2, "“of”", "The tokens with the highest mean", explainer="token_lookup"),
    ]
    run = make_searched_run(tmp_path / "run", said)
    with open_store(run.path) as store, store.cursor() as cursor:
        texts = [each.text for each in read_lacking(cursor, "m", 9, -1)]
    assert texts == ["doubt\nhedges", "same", "“of”"]


def test_the_rankings_are_fused_by_reciprocal_rank() -> None:
    hits = fuse([10, 11, 12], [(12, 0.9), (13, 0.8)])
    assert [hit.place for hit in hits] == [12, 10, 11, 13]
    assert hits[0].relevance == pytest.approx(1 / 63 + 1 / 61)
    assert (hits[0].text_rank, hits[0].meaning_rank, hits[0].cosine) == (3, 1, 0.9)
    assert hits[1].relevance == pytest.approx(1 / 61)


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 8), st.integers(0, 8))
def test_what_is_first_in_both_rankings_is_first(
    one: list[int], other: list[int], n_one: int, n_other: int
) -> None:
    by_text, by_meaning = one[:n_one], [(place, 1.0) for place in other[:n_other]]
    hits = fuse([99, *by_text], [(99, 1.0), *by_meaning])
    assert hits[0].place == 99
    assert len(hits) == len({99, *by_text, *(place for place, _ in by_meaning)})
    assert [hit.relevance for hit in hits] == sorted((h.relevance for h in hits), reverse=True)


def test_as_many_of_each_ranking_are_fused_as_can_matter() -> None:
    beyond, last_of_one = 2 / (60 + DEPTH + 1), 1 / (60 + 470)
    assert beyond < last_of_one <= 2 / (60 + DEPTH)


def families(run: RunFolder, features: list[int]) -> list[tuple[int, ...]]:
    with open_store(run.path) as store, store.cursor() as cursor:
        places = dict(cursor.execute("SELECT feature, place FROM current_features").fetchall())
        names = {place: feature for feature, place in places.items()}
        found = group_into_families(cursor, [places[feature] for feature in features])
    return [tuple(names[place] for place in family) for family in found]


def test_features_of_one_direction_are_a_family_and_those_far_apart_are_not(tmp_path: Path) -> None:
    said = [Said(number, f"label {number}") for number in range(6)]
    near = ((0, 2, SAME_DIRECTION), (4, 2, 0.95), (1, 3, SAME_DIRECTION - 0.01))
    run = make_searched_run(tmp_path / "run", said, near)
    # 0 and 4 are near 2; of 2 itself nothing is stored.
    assert families(run, [4, 1, 0, 3, 2, 5]) == [(4, 0, 2), (1,), (3,), (5,)]
    # What was not found joins nothing.
    assert families(run, [4, 0]) == [(4,), (0,)]


def test_labels_that_say_the_same_are_a_family_in_any_sae(tmp_path: Path) -> None:
    said = [Said(0, "Expressions of  doubt"), Said(1, "expressions of doubt", sae=HIGH),
            Said(2, "doubt")]  # fmt: skip
    run = make_searched_run(tmp_path / "run", said)
    assert families(run, [1, 2, 0]) == [(1, 0), (2,)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_families_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    places = random.Random(0).sample(range(10), 10)
    # Everything reaches itself; then by a slow closure, what reaches each other.
    reach = {place: {place} for place in places}
    for _ in places:
        for a, b in pairs:
            reach[a] |= reach[b]
            reach[b] |= reach[a]
        for members in reach.values():
            members |= set().union(*(reach[member] for member in members))
    found = connected(places, pairs)
    assert {frozenset(family) for family in found} == {frozenset(each) for each in reach.values()}
    assert [place for family in found for place in family[:1]] == [
        place for place in places if place == min(reach[place], key=places.index)
    ]
    assert all(list(family) == sorted(family, key=places.index) for family in found)
