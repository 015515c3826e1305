"""Patterns over the SAEs of Gemma Scope."""

from __future__ import annotations

from pathlib import Path

import pytest
from scopenote.extract.gemma_scope_index import resolve_short_name
from scopenote.extract.sae_patterns import is_pattern, match_saes, named_sae, named_saes
from scopenote.extract.sites import Site
from scopenote.flows.collect_setup import sae_entries
from scopenote.flows.config import load_config
from scopenote.store.errors import SaeError


@pytest.mark.parametrize(
    ("pattern", "n"),
    [
        ("gemma-scope-*/**", 2430),
        ("google/**", 2430),
        ("gemma-scope-2b-pt-*/**", 862),
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/*", 5),
        ("gemma-scope-2b-pt-transcoders/**", 26),
        # Neuronpedia's plain ids are the canonical ones.
        ("gemma-2-2b/*-gemmascope-res-16k", 26),
        ("gemma-2-2b/2?-gemmascope-res-16k", 6),
        ("gemma-2-2b/20-gemmascope-res-16k", 1),
    ],
)
def test_a_pattern_stands_for_names_and_paths(pattern: str, n: int) -> None:
    assert len(match_saes(pattern)) == n


def test_one_star_stays_within_a_name_and_two_do_not() -> None:
    with pytest.raises(SaeError, match="No SAE of Gemma Scope is meant"):
        match_saes("gemma-scope-2b-pt-res/*")
    assert len(match_saes("gemma-scope-2b-pt-res/**")) == 316


def test_what_matches_nothing_is_answered_with_what_might() -> None:
    with pytest.raises(SaeError, match=r"gemma-2-2b/\*-gemmascope-res-16k"):
        match_saes("gemma-3-*/**")
    with pytest.raises(SaeError, match="matches SAEs of gemma-2-27b only"):
        match_saes("gemma-scope-27b-*/**", "gemma-2-2b")


def test_every_sae_is_found_by_its_own_name_and_path() -> None:
    every = named_saes()
    assert len({sae.sae_id for sae in every.values()}) == len(every)
    for sae in list(every.values())[::97]:
        assert named_sae(sae.path) == sae
        assert named_sae(f"{sae.path}/params.npz") == sae
        if sae.site.kind != "embedding":
            assert resolve_short_name(sae.sae_id) == sae.path
    assert named_sae("my-saes/one") is None
    with pytest.raises(SaeError):
        named_sae("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_70")


def test_widths_are_powers_of_two() -> None:
    sae = named_sae("gemma-2-2b/20-gemmascope-res-16k")
    assert sae is not None
    assert (sae.width, sae.site, sae.l0) == (16_384, Site(20, "res"), 71.0)
    assert {sae.width.bit_count() for sae in named_saes().values()} == {1}


def test_patterns_in_a_configuration_stand_for_the_saes_of_its_model(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        """
        [model]
        name = "google/gemma-2-9b-it"
        [saes]
        paths = ["gemma-scope-9b-it-res/layer_9/width_16k/**", "9-mlp-neurons", "gemma-*/**"]
        [corpus]
        path = "texts"
        """
    )
    first, *rest = [entry.path for entry in sae_entries(load_config(config))]
    assert first.startswith("google/gemma-scope-9b-it-res/layer_9/width_16k/")
    n_of_it = len(match_saes("gemma-scope-9b-it-res/layer_9/width_16k/**"))
    assert rest[n_of_it - 1] == "9-mlp-neurons"
    assert len(rest) == n_of_it + 1550
    assert not any(map(is_pattern, [first, *rest]))
