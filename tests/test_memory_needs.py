"""Needs worked out from sizes, against what is really there."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, Literal

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
from scopenote.extract.sites import Site, SiteReader
from scopenote.extract.sketches import SketchSizes
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

from .tiny_gemma import sae_arrays, save_tiny_gemma, tiny_config, tiny_gemma_3_config

SIZES = SketchSizes()


def bytes_of(network: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("deepest", range(3))
def test_parameters_are_those_of_the_model_as_it_is_loaded(
    tmp_path: Path, generation: Literal[2, 3], deepest: int
) -> None:
    folder = save_tiny_gemma(tmp_path / "tiny", generation=generation, heads=4, kv_heads=2)
    loaded = load_model(str(folder), [Site(deepest, "mlp")], "cpu", "float32")
    need = model_need(loaded.config, deepest + 1, 4)
    assert need.n_bytes == bytes_of(loaded.network)
    assert f"{deepest + 1} of 3 layers" in need.arithmetic


def test_a_whole_model_with_its_head_has_no_more_parameters() -> None:
    network = AutoModelForCausalLM.from_pretrained(find_local_model(TOY))
    assert count_parameters(network.config, 3) * 4 == bytes_of(network)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (Gemma2Config(), 26),  # Gemma 2 2B
        (Gemma3TextConfig(), 26),
        (Gemma3TextConfig(hidden_size=64, intermediate_size=96, vocab_size=50), 5),
        (Gemma2Config(hidden_size=64, intermediate_size=96, vocab_size=50, head_dim=20), 5),
    ],
)
def test_parameters_are_those_of_the_whole_model_with_its_head(
    config: Gemma2Config | Gemma3TextConfig, layers: int
) -> None:
    config.num_hidden_layers = layers
    with torch.device("meta"):  # without the room for its weights
        network = AutoModelForCausalLM.from_config(config)
    assert count_parameters(config, layers) == sum(p.numel() for p in network.parameters())


def test_gemma_2_2b_has_as_many_parameters_as_it_is_known_for() -> None:
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


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors took at once within the block, beside a network's weights."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        weights = network.parameters()
        self.alive = {weight.untyped_storage().data_ptr(): 0 for weight in weights}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if place not in self.alive:
            self.alive[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.now -= self.alive.pop(place)


@pytest.mark.parametrize(
    ("make_config", "dtype", "kind"),
    [(tiny_config, torch.float32, "att"), (tiny_gemma_3_config, torch.bfloat16, "res")],
)
def test_a_batch_takes_no_more_than_is_said_and_not_much_less(
    make_config: Any, dtype: torch.dtype, kind: Literal["res", "att"]
) -> None:
    config = make_config(layers=2, hidden=64, heads=4, head_dim=16)
    config.intermediate_size = 4 * config.hidden_size  # as in the true ones
    network = AutoModel.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    ids, site = torch.randint(4, 99, (8, 64)), Site(1, kind)
    reader = SiteReader(network, [site])
    with torch.inference_mode(), PeakMemory(network) as memory:
        reader.read(ids, [site])
    need = batch_need(
        config,
        [site],
        n_at_once=1,
        batch_tokens=ids.numel(),
        number_bytes=dtype.itemsize,
        sequence_tokens=64,
        has_square_scores=True,
    )
    assert memory.peak <= need.n_bytes <= 1.6 * memory.peak
