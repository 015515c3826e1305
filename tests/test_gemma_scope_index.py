"""The index of what Gemma Scope published: what it holds, and what it answers to what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scopenote.extract.gemma_scope import read_layout
from scopenote.extract.gemma_scope_index import (
    OWNER,
    PublishedSae,
    check_published,
    gemma_scope_id,
    read_index,
    resolve_short_name,
)
from scopenote.store.errors import SaeError

RES = "google/gemma-scope-2b-pt-res"


def refused_path(repository: str, inside: str) -> SaeError:
    with pytest.raises(SaeError) as refused:
        check_published(repository, inside)
    return refused.value


def refused_name(name: str) -> SaeError:
    with pytest.raises(SaeError) as refused:
        resolve_short_name(name)
    return refused.value


def test_the_index_holds_all_that_was_published() -> None:
    counts = {name: len(list(entry.saes())) for name, entry in read_index().items()}
    assert counts == {
        "gemma-scope-2b-pt-res": 316,
        "gemma-scope-2b-pt-mlp": 260,
        "gemma-scope-2b-pt-att": 260,
        "gemma-scope-2b-pt-transcoders": 26,
        "gemma-scope-9b-pt-res": 536,
        "gemma-scope-9b-pt-mlp": 492,
        "gemma-scope-9b-pt-att": 492,
        "gemma-scope-9b-it-res": 30,
        "gemma-scope-27b-pt-res": 18,
    }


def test_the_canonical_saes_are_those_nearest_an_l0_of_100() -> None:
    for name, entry in read_index().items():
        for width, layers in entry.widths.items():
            for layer, (canonical, *others) in layers.items():
                if canonical is not None:
                    assert all(abs(canonical - 100) <= abs(l0 - 100) for l0 in others), (
                        name,
                        width,
                        layer,
                    )


def test_every_short_name_leads_to_its_sae_and_back() -> None:
    kinds = {"transcoders": "transcoder"}
    n = 0
    for repository, entry in read_index().items():
        ending = repository.rpartition("-")[2]
        for sae in entry.saes():
            name = gemma_scope_id(
                entry.model, repository, sae.layer, kinds.get(ending, ending), sae.width, sae.l0
            )
            path = f"{OWNER}/{repository}/{sae.path}"
            assert resolve_short_name(f"{entry.model}/{name}") == path
            check_published(f"{OWNER}/{repository}", sae.path)
            n += 1
    assert n == 2430


@pytest.mark.parametrize("model", ["gemma-2-9b", "gemma-2-9b-it", "my-gemma"])
def test_on_one_model_every_sae_has_an_id_of_its_own(model: str) -> None:
    """Of one size: of another they do not fit the model."""
    ids = []
    for repository, entry in read_index().items():
        if "-9b-" in repository:
            kind = repository.rpartition("-")[2]
            ids += [
                gemma_scope_id(model, repository, s.layer, kind, s.width, s.l0)
                for s in entry.saes()
            ]
    assert len(ids) == 1550
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gemma-2-9b/9-gemmascope-res-16k", "9b-pt-res/layer_9/width_16k/average_l0_100"),
        ("gemma-2-9b/9-gemmascope-res-16k-it", "9b-it-res/layer_9/width_16k/average_l0_88"),
        ("gemma-2-9b-it/9-gemmascope-res-16k", "9b-it-res/layer_9/width_16k/average_l0_88"),
        ("gemma-2-9b-it/9-gemmascope-res-16k-pt", "9b-pt-res/layer_9/width_16k/average_l0_100"),
        ("gemma-2-9b-it/9-gemmascope-res-16k-pt-l0-9", "9b-pt-res/layer_9/width_16k/average_l0_9"),
        ("gemma-2-9b-it/9-gemmascope-mlp-16k-pt", "9b-pt-mlp/layer_9/width_16k/average_l0_83"),
        ("gemma-2-2b-it/20-gemmascope-res-16k-pt", "2b-pt-res/layer_20/width_16k/average_l0_71"),
    ],
)
def test_a_short_name_says_whether_the_sae_was_trained_on_the_model(name: str, path: str) -> None:
    assert resolve_short_name(name) == f"{OWNER}/gemma-scope-{path}"
    model, _, source = name.partition("/")
    layout = read_layout(f"{OWNER}/gemma-scope-{path}", model)
    assert layout is not None
    assert layout.source_id == source


def test_neuronpedia_s_spelling_of_an_l0_is_understood() -> None:
    name = "gemma-2-2b/5-gemmascope-res-16k"
    assert resolve_short_name(f"{name}__l0-143") == resolve_short_name(f"{name}-l0-143")


@pytest.mark.parametrize("name", ["my-sae", "gemma-2-2b/20-res-16k", f"{RES}/layer_20", "a/b/c"])
def test_what_is_no_short_name_is_left_alone(name: str) -> None:
    assert resolve_short_name(name) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("20-gemmascope-res-16k-l0-70", ["20-gemmascope-res-16k", "20-gemmascope-res-16k-l0-38"]),
        ("20-gemmascope-res-131k", ["20-gemmascope-res-16k", "20-gemmascope-res-65k"]),
        ("26-gemmascope-att-16k", ["25-gemmascope-att-16k", "25-gemmascope-att-65k"]),
        ("e-gemmascope-res-4k", ["e-gemmascope-res-4k-l0-6", "e-gemmascope-res-4k-l0-21"]),
        (
            "12-gemmascope-res-131k",
            ["12-gemmascope-res-131k-l0-12", "12-gemmascope-res-131k-l0-20"],
        ),
    ],
)
def test_a_short_name_of_no_sae_is_refused_with_the_nearest(name: str, near: list[str]) -> None:
    refused = refused_name(f"gemma-2-2b/{name}")
    assert refused.found == f"gemma-2-2b/{name}"
    assert refused.mend == "the nearest are " + " and ".join(f"gemma-2-2b/{n}" for n in near)


def test_a_short_name_of_no_model_is_refused_with_the_models() -> None:
    assert refused_name("gemma-2-2b/20-gemmascope-res-16k-it").found
    refused = refused_name("gemma-2-9b-it/20-gemmascope-mlp-16k")
    assert "gemma-2-9b-it (res)" in (refused.expected or "")
    assert "gemma-2-2b (transcoder)" in (refused.expected or "")


@pytest.mark.parametrize(
    ("inside", "near"),
    [
        (
            "layer_20/width_16k/average_l0_70",
            ["layer_20/width_16k/average_l0_71", "layer_20/width_16k/average_l0_38"],
        ),
        (
            "layer_20/width_16k/canonical",
            ["layer_20/width_16k/average_l0_71", "layer_20/width_16k/average_l0_22"],
        ),
        (
            "embedding/width_4k/average_l0_100",
            ["embedding/width_4k/average_l0_111", "embedding/width_4k/average_l0_44"],
        ),
        (
            "layer20/width_16k/average_l0_71",
            ["layer_20/width_16k/average_l0_71", "layer_20/width_16k/average_l0_139"],
        ),
    ],
)
def test_a_path_of_no_sae_is_refused_with_the_nearest(inside: str, near: list[str]) -> None:
    refused = refused_path(RES, inside)
    assert refused.found == f"{RES}/{inside}"
    assert refused.expected == f"one of the 316 SAEs of {RES}"
    assert refused.mend == "the nearest are " + " and ".join(f"{RES}/{path}" for path in near)


def test_a_repository_that_does_not_exist_is_refused_with_the_nearest() -> None:
    refused = refused_path("google/gemma-scope-2b-pt-transcoder", "layer_7/width_16k/average_l0_70")
    assert "nearest are google/gemma-scope-2b-pt-transcoders and" in (refused.mend or "")


@pytest.mark.parametrize(
    "repository", ["google/gemma-scope-2-1b-pt", "someone/gemma-scope-2b-pt-res", "google/other"]
)
def test_only_the_hub_knows_of_other_repositories(repository: str) -> None:
    check_published(repository, "layer_20/width_16k/average_l0_70")


def test_the_index_is_that_of_the_shared_data() -> None:
    source = Path(__file__).parents[2] / "shared/data/gemma_scope_1_index.json"
    if not source.is_file():
        pytest.skip("the data it was made from is not here")
    made: dict[str, set[str]] = {}
    for entry in json.loads(source.read_text()).values():
        name = entry["repo_id"].removeprefix("google/")
        made.setdefault(name, set()).update(sae["path"] for sae in entry["saes"])
    assert made == {
        name: {sae.path for sae in entry.saes()} for name, entry in read_index().items()
    }


def test_distance_prefers_the_layer_then_the_width_then_the_l0() -> None:
    entry = read_index()["gemma-scope-2b-pt-res"]
    assert entry.nearest("19", "1m", 88)[0] == PublishedSae("19", "1m", 88)
    assert entry.nearest("18", "1m", 88)[0].layer == "18"
