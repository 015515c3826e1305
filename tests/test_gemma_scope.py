"""Gemma Scope 2: what its folders and config.json say of the SAEs in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scopenote.extract.gemma_scope import read_layout
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.sites import Site
from scopenote.store.errors import SaeError

from .test_sae_sources import assert_described, locate_below, touch

TRANSCODER = {
    "architecture": "jump_relu",
    "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
    "l0": 52,
}


def locate(folder: Path, path: str, config: Any = None, **told: Any) -> SaeSource:
    if config is not None:
        file = touch(folder / path / "config.json")
        file.write_text(config if isinstance(config, str) else json.dumps(config))
    return locate_below(folder, path, "params.safetensors", "gemma-3-1b", **told)


@pytest.mark.parametrize(
    ("path", "site", "source"),
    [
        (
            "resid_post/layer_13_width_16k_l0_medium",
            Site(13, "res"),
            "13-gemmascope-2-res-16k",
        ),
        (
            "resid_post/layer_13_width_1m_l0_small",
            Site(13, "res"),
            "13-gemmascope-2-res-1m-l0-small",
        ),
        (
            "resid_post_all/layer_13_width_16k_l0_small",
            Site(13, "res"),
            "13-gemmascope-2-res-16k-all-l0-small",
        ),
        (
            "attn_out/layer_7_width_65k_l0_medium",
            Site(7, "att"),
            "7-gemmascope-2-att-65k-l0-medium",
        ),
        ("mlp_out/layer_0_width_16k_l0_big", Site(0, "mlp"), "0-gemmascope-2-mlp-16k-l0-big"),
        (
            "transcoder/layer_5_width_16k_l0_small",
            Site(5, "mlp_in"),
            "5-gemmascope-2-transcoder-16k-l0-small",
        ),
        (
            "transcoder_all/layer_5_width_262k_l0_small_affine",
            Site(5, "mlp_in"),
            "5-gemmascope-2-transcoder-262k",
        ),
        (
            "transcoder_all/layer_5_width_262k_l0_big_affine",
            Site(5, "mlp_in"),
            "5-gemmascope-2-transcoder-262k-all-l0-big-affine",
        ),
    ],
)
def test_the_layout_says_what_is_read_and_makes_an_id(
    tmp_path: Path, path: str, site: Site, source: str
) -> None:
    assert_described(locate(tmp_path, path), site, f"gemma-3-1b/{source}", stated_l0=None)


@pytest.mark.parametrize(
    ("repository", "model", "mark"),
    [
        ("gemma-scope-2-1b-pt", "gemma-3-1b", ""),
        ("gemma-scope-2-1b-pt", "gemma-3-1b-pt", ""),
        ("gemma-scope-2-1b-pt", "gemma-3-1b-it", "-pt"),
        ("gemma-scope-2-1b-it", "gemma-3-1b-it", ""),
        ("gemma-scope-2-1b-it", "gemma-3-1b-pt", "-it"),
        ("another-folder", "gemma-3-1b-it", ""),
    ],
)
def test_the_id_says_where_the_sae_was_trained_on_the_other_form_of_the_model(
    repository: str, model: str, mark: str
) -> None:
    for path, source in (
        ("resid_post/layer_13_width_16k_l0_medium", f"13-gemmascope-2-res-16k{mark}"),
        ("mlp_out/layer_0_width_16k_l0_big", f"0-gemmascope-2-mlp-16k{mark}-l0-big"),
    ):
        layout = read_layout(f"google/{repository}/{path}", model)
        assert layout is not None
        assert layout.source_id == source


def test_the_config_states_the_l0(tmp_path: Path) -> None:
    located = locate(tmp_path, "transcoder/layer_12_width_16k_l0_medium", TRANSCODER)
    assert located.stated_l0 == 52
    assert located.site == Site(12, "mlp_in")


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("model.layers.4.output", Site(4, "res")),
        ("model.layers.4.post_feedforward_layernorm.output", Site(4, "mlp")),
        ("model.layers.4.self_attn.o_proj.input", Site(4, "att")),
        ("model.layers.4.pre_feedforward_layernorm.output", Site(4, "mlp_in")),
    ],
)
def test_the_config_tells_the_site_where_the_path_does_not(
    tmp_path: Path, hook: str, site: Site
) -> None:
    located = locate(tmp_path, "mine", {"hf_hook_point_in": hook})
    assert (located.site, located.sae_id) == (site, "gemma-3-1b/mine")


def test_the_caller_knows_better_than_the_config(tmp_path: Path) -> None:
    located = locate(tmp_path, "mine", TRANSCODER, kind="transcoder", layer=3)
    assert located.site == Site(3, "transcoder")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (TRANSCODER | {"architecture": "topk"}, "'topk'"),
        (TRANSCODER | {"hf_hook_point_in": "model.layers.12.mlp.output"}, "12.mlp.output"),
        (TRANSCODER | {"hf_hook_point_out": "model.layers.13.output"}, "layers.13.output"),
        (
            TRANSCODER | {"hf_hook_point_in": ["model.layers.1.output", "model.layers.2.output"]},
            "layers.2.output",
        ),
        (TRANSCODER | {"l0": "many"}, "many"),
        ("[]", "list"),
        ("{", "column"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(tmp_path: Path, config: Any, found: str) -> None:
    with pytest.raises(SaeError) as refused:
        locate(tmp_path, "transcoder/layer_12_width_16k_l0_medium", config)
    assert (refused.value.where or "").endswith("config.json")
    assert found in (refused.value.found or "")
