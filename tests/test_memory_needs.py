"""Needs worked out from sizes, against what is really there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scopenote.extract.firing_passes import FeatureCounts
from scopenote.extract.kept_windows import KeptWindows
from scopenote.extract.local_files import find_local_model, read_sae_shapes
from scopenote.extract.memory_needs import (
    background_need,
    batch_need,
    context_need,
    count_parameters,
    encoder_shape,
    model_need,
    sae_need,
    sketch_need,
)
from scopenote.extract.models import TOY, load_model
from scopenote.extract.sites import Site
from scopenote.extract.sketches import SketchSizes
from transformers import AutoModelForCausalLM

from .tiny_gemma import sae_arrays, save_tiny_gemma, tiny_config

SIZES = SketchSizes()


def bytes_of(network: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


@pytest.mark.parametrize("deepest", range(3))
def test_parameters_are_those_of_the_model_as_it_is_loaded(tmp_path: Path, deepest: int) -> None:
    folder = save_tiny_gemma(tmp_path / "tiny", heads=4, kv_heads=2)
    loaded = load_model(str(folder), [Site(deepest, "mlp")], "cpu", "float32")
    need = model_need(loaded.config, deepest + 1, 4)
    assert need.n_bytes == bytes_of(loaded.network)
    assert f"{deepest + 1} of 3 layers" in need.arithmetic


def test_a_whole_model_with_its_head_has_no_more_parameters() -> None:
    network = AutoModelForCausalLM.from_pretrained(find_local_model(TOY))
    assert count_parameters(network.config, 3) * 4 == bytes_of(network)


def test_gemma_2_2b_has_as_many_parameters_as_it_is_known_for() -> None:
    from transformers import Gemma2Config

    # Some 2.61 billion, the embedding counted once.
    assert count_parameters(Gemma2Config(), 26) == pytest.approx(2.614e9, rel=1e-3)


def test_an_sae_takes_what_its_arrays_take_in_float32(tmp_path: Path) -> None:
    arrays = sae_arrays(64, 16)
    file = tmp_path / "params.npz"
    # In half the precision on disk: in memory it is float32 all the same.
    np.savez(file, **{name: array.astype(np.float16) for name, array in arrays.items()})
    shapes = read_sae_shapes(file)
    assert encoder_shape(shapes) == (16, 64)
    assert sae_need("SAE", shapes).n_bytes == sum(array.nbytes for array in arrays.values())


def test_sketches_take_more_than_the_rows_that_they_keep() -> None:
    rows = int(SIZES.kept_top.sum() + SIZES.kept_sample.sum())
    kept = KeptWindows.with_room(100 * rows, 4 * 100 * rows)
    counts = sum(column.nbytes for column in FeatureCounts.zeros(100, 3))
    need = sketch_need("sketches", 100, SIZES)
    assert need.n_bytes == 3.75 * sum(column.nbytes for column in kept) + counts
    assert f"100 features × {rows} kept rows" in need.arithmetic


def test_disk_grows_with_features_windows_and_copies() -> None:
    one = context_need("contexts", 100, SIZES, 1)
    assert context_need("contexts", 300, SIZES, 2).n_bytes == 6 * one.n_bytes
    windows = int(SIZES.kept_background.sum())
    assert background_need("b", 20.0, SIZES, 64, 2).n_bytes == windows * 64 * 20 * 11 * 2


def test_batches_take_the_layer_the_sites_and_on_a_gpu_the_scores() -> None:
    config = tiny_config(hidden=16, heads=4, head_dim=12)
    settings = {"n_at_once": 2, "batch_tokens": 100, "number_bytes": 4, "sequence_tokens": 50}
    sites = [Site(0, "res"), Site(0, "att"), Site(0, "res")]
    cpu = batch_need(config, sites, **settings, has_square_scores=False)
    # Four vectors and three of the MLP's; a site that two SAEs read is held once.
    assert cpu.n_bytes == 2 * 100 * (4 * 16 + 3 * 32 + 2 * (16 + 48)) * 4
    gpu = batch_need(config, sites, **settings, has_square_scores=True)
    assert gpu.n_bytes - cpu.n_bytes == 2 * 100 * 50 * 4 * (4 + 4 + 4)
