"""Neurons as features: their thresholds against a slow twin, and the basis as an SAE."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.extract import windows
from scopenote.extract.activations import find_firings
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.corpus import Document
from scopenote.extract.fidelity import FidelitySums, check_fidelity
from scopenote.extract.models import load_model
from scopenote.extract.neurons import (
    find_thresholds,
    read_thresholds,
    thresholds_id,
    thresholds_table,
)
from scopenote.extract.passes import is_released
from scopenote.extract.sae_sources import SaeSource, locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.shards import Shard
from scopenote.extract.sites import Site
from scopenote.extract.windows import (
    TokenizedChunk,
    WindowShape,
    cut_chunks,
    take_prefix,
    tokenize_chunk,
)
from scopenote.flows import collect_contexts as flow
from scopenote.flows import collect_setup
from scopenote.flows.collect_contexts import collect_part, collect_shard
from scopenote.flows.collect_setup import load_collect_job, sae_sources
from scopenote.flows.config import Config, load_config
from scopenote.flows.progress import Progress
from scopenote.store.errors import CorpusError, ModelError, SaeError
from scopenote.store.parts import list_parts, write_part
from scopenote.store.run_folder import RunFolder
from scopenote.store.splits import document_id
from transformers import AutoModel

from .brute_force import WholeNumberModel
from .tiny_gemma import save_tiny_gemma, save_tiny_sae

SITES = [Site(0, "mlp"), Site(1, "mlp")]
SHAPE = WindowShape(window_tokens=3, prefix_tokens=2, sequence_tokens=11)
BATCH_TOKENS = 40
D, N_LETTERS = 6, 50


class Model(WholeNumberModel):
    """Of floats, with another tensor for every layer; an underscore in the text is a BOS."""

    def read_sites(
        self,
        input_ids: torch.Tensor,
        sites: list[Site],
        position_ids: torch.Tensor | None = None,
    ) -> dict[Site, torch.Tensor]:
        (x,) = super().read_sites(input_ids, sites[:1], position_ids).values()
        return {site: x * (1 + site.layer) - 0.3 * site.layer for site in sites}


def make_model(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    own, before = rng.standard_normal((2, 4 + N_LETTERS, D)).astype(np.float32)
    own[:, 0] -= 9  # never positive
    own[:, 1] += 9  # off zero, always
    own[2] = 1000  # BOS
    return Model(own, before)


def make_text(rng: np.random.Generator, length: int) -> str:
    special = rng.random(length) < 0.02
    letters = rng.integers(ord("a"), ord("a") + N_LETTERS, length)
    return "".join(map(chr, np.where(special, ord("_"), letters)))


def make_texts(seed: int, n: int, most: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    return [make_text(rng, int(length)) for length in rng.integers(1, most, n)]


def tokenized(model: Any, texts: list[str], shape: WindowShape = SHAPE) -> list[TokenizedChunk]:
    documents = [Document(text, document_id(text)) for text in texts]
    return [
        tokenize_chunk(chunk, model.tokenizer, model.name, shape) for chunk in cut_chunks(documents)
    ]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 2)


def thresholds_of(model: Any, prefix: list[TokenizedChunk]) -> dict[Site, np.ndarray]:
    return find_thresholds(model, SITES, prefix, BATCH_TOKENS, lambda n: None)


def dense_prefix(model: Any, texts: list[str], n_tokens: int) -> dict[Site, np.ndarray]:
    """The slow twin: every vector of the first sequences, one sequence at a time."""
    found: dict[Site, list[np.ndarray]] = {site: [] for site in SITES}
    seen = 0
    for text in texts:
        ids = model.tokenizer([text])["input_ids"][0]
        for start in range(0, len(ids), 9):
            if seen >= n_tokens:
                break
            sequence = ids[start : start + 9]
            seen += len(sequence)
            is_text = [token >= 4 for token in sequence]
            for site, x in model.read_sites(torch.tensor([[2, *sequence]]), SITES).items():
                found[site].append(x[0, 1:].numpy()[is_text])
    return {site: np.concatenate(rows) for site, rows in found.items()}


def sides(x: np.ndarray) -> np.ndarray:
    """Units in the order of feature numbers, tokens first."""
    return np.stack([np.maximum(x, 0), np.maximum(-x, 0)], axis=2).reshape(len(x), -1)


# --- thresholds ---------------------------------------------------------------------------


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("seed", "n_tokens"), [(0, 731), (1, 99), (2, 1850), (3, 10**6)])
def test_thresholds_are_the_99th_percentiles_of_the_rectified_sides(
    seed: int, n_tokens: int
) -> None:
    model, texts = make_model(seed), make_texts(seed, 70)
    prefix = take_prefix(tokenized(model, texts), n_tokens)
    dense = dense_prefix(model, texts, n_tokens)
    for site, found in thresholds_of(model, prefix).items():
        values = sides(dense[site])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(
            found, np.percentile(values, 99, axis=0, method="inverted_cdf")
        )
        # Few values are equal: nearly 1% of tokens are above.
        share = (values > found).mean(0)
        assert (share <= 0.01).all()
        assert found[0] == 0 and found[1] > 0 and found[2] > 0 and found[3] == 0


def test_the_sequences_of_a_real_model_do_not_see_each_other(tmp_path: Path) -> None:
    folder = save_tiny_gemma(tmp_path / "tiny-gemma-2")
    model = load_model(str(folder), SITES, "cpu")
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcde the."), length)) for length in range(5, 60, 4)]
    prefix = tokenized(model, texts, WindowShape(window_tokens=8, sequence_tokens=33))
    found = find_thresholds(model, SITES, prefix, 200, lambda n: None)
    network = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    vectors: dict[Site, list[np.ndarray]] = {site: [] for site in SITES}
    for site in SITES:
        norm = network.layers[site.layer].post_feedforward_layernorm
        norm.register_forward_hook(
            lambda _module, _inputs, output, site=site: vectors[site].append(output[0, 1:].numpy())
        )
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), 32):
            with torch.inference_mode():
                network(torch.tensor([[model.tokenizer.bos_token_id, *ids[start : start + 32]]]))
    for site in SITES:
        x = sides(np.concatenate(vectors[site]))
        expected = np.percentile(x, 99, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found[site], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=4),
)
def test_the_percentile_is_exact_for_any_number_of_tokens(seed: int, lengths: list[int]) -> None:
    model, rng = make_model(seed), np.random.default_rng(seed)
    texts = [make_text(rng, length).replace("_", "a") for length in lengths]
    found = thresholds_of(model, tokenized(model, texts))
    n = sum(lengths)
    for site, x in dense_prefix(model, texts, n).items():
        in_order = np.sort(sides(x), axis=0)
        np.testing.assert_array_equal(found[site], in_order[-(-99 * n // 100) - 1])


@pytest.mark.usefixtures("small_chunks")
def test_no_more_text_is_read_than_the_prefix_needs() -> None:
    model, read = make_model(0), []

    def chunks() -> Iterator[TokenizedChunk]:
        for chunk in tokenized(model, ["abcdefghijkl", "ab"] * 5):
            read.append(chunk.index)
            yield chunk

    prefix = take_prefix(chunks(), 24)
    # Two documents a chunk, of 12 and 2 tokens; sequences of 9, 3 and 2.
    assert read == [0, 1]
    assert [chunk.n_tokens for chunk in prefix] == [14, 12]
    assert sum(chunk.n_tokens for chunk in take_prefix(chunks(), 10**6)) == 70


def test_every_batch_is_counted_once_for_the_progress() -> None:
    model, counted = make_model(0), []
    prefix = take_prefix(tokenized(model, make_texts(0, 20)), 300)
    find_thresholds(model, SITES, prefix, BATCH_TOKENS, counted.append)
    assert len(counted) > 3
    assert sum(counted) == sum(chunk.n_tokens for chunk in prefix)


class Cramped(Model):
    """A device on which no more than 30 padded tokens fit."""

    def read_sites(
        self,
        input_ids: torch.Tensor,
        sites: list[Site],
        position_ids: torch.Tensor | None = None,
    ) -> dict[Site, torch.Tensor]:
        if input_ids.numel() > 30:
            raise torch.OutOfMemoryError("out of memory")
        return super().read_sites(input_ids, sites, position_ids)


def test_a_batch_for_which_there_is_no_room_is_read_in_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    model = make_model(0)
    prefix = tokenized(model, make_texts(0, 30))
    cramped: Any = Cramped(model.own, model.before)
    for site, found in thresholds_of(cramped, prefix).items():
        np.testing.assert_array_equal(found, thresholds_of(model, prefix)[site])


def test_text_of_special_tokens_alone_is_refused() -> None:
    model = make_model(0)
    with pytest.raises(CorpusError, match="no text to take the neurons' percentiles from"):
        thresholds_of(model, tokenized(model, ["___"]))


def test_values_that_are_not_finite_are_refused() -> None:
    model = make_model(0)
    model.own[9, 4] = np.nan
    with pytest.raises(ModelError, match="not finite") as raised:
        thresholds_of(model, tokenized(model, make_texts(0, 30)))
    assert raised.value.where == "the output of model.layers[0].post_feedforward_layernorm"
    assert (raised.value.found or "").startswith("2 of 12")


def test_the_name_of_thresholds_hangs_on_all_that_decides_them() -> None:
    model = make_model(0)
    prefix = tokenized(model, make_texts(0, 30))
    other_text = tokenized(model, make_texts(1, 30))
    longer = WindowShape(window_tokens=3, sequence_tokens=14)
    names = [
        thresholds_id(model, SITES[0], prefix, SHAPE, 40),
        thresholds_id(model, SITES[1], prefix, SHAPE, 40),
        thresholds_id(model, SITES[0], other_text, SHAPE, 40),
        thresholds_id(model, SITES[0], take_prefix(prefix, 100), SHAPE, 40),
        thresholds_id(model, SITES[0], prefix, longer, 40),
        thresholds_id(model, SITES[0], prefix, SHAPE, 41),
    ]
    model.network = SimpleNamespace(dtype=torch.bfloat16)
    names.append(thresholds_id(model, SITES[0], prefix, SHAPE, 40))
    assert len(set(names)) == len(names)
    # Neither what is kept of the windows nor their sampling has a part in it.
    other_seed = WindowShape(window_tokens=3, prefix_tokens=0, sequence_tokens=11, seed=5)
    assert thresholds_id(make_model(0), SITES[0], prefix, other_seed, 40) == names[0]


# --- the basis as an SAE ------------------------------------------------------------------


def save_basis(folder: Path, threshold: np.ndarray) -> SaeSource:
    table = thresholds_table(threshold.astype(np.float32))
    part = write_part(folder, "neurons-x", "neurons", {"thresholds": table}, {})
    site = Site(1, "mlp")
    return SaeSource("m/1-mlp-neurons", part.file("thresholds"), site, None, "1-mlp-neurons")


def load_basis(folder: Path, threshold: np.ndarray) -> Sae:
    config = SimpleNamespace(hidden_size=len(threshold) // 2)
    return load_sae(save_basis(folder, threshold), config)


def test_units_are_the_coordinates_beyond_their_thresholds_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 16)) * 10.0 ** rng.integers(-8, 8, (200, 16))).astype(np.float32)
    threshold = np.percentile(sides(x), 90, axis=0, method="inverted_cdf").astype(np.float32)
    basis = load_basis(tmp_path, threshold)
    plain = np.where(sides(x) > threshold, sides(x), 0)
    np.testing.assert_array_equal(basis.encode(torch.from_numpy(x)).numpy(), plain)
    firings = find_firings(basis, torch.from_numpy(x))
    dense = np.zeros_like(plain)
    dense[firings.token, firings.feature] = firings.value
    np.testing.assert_array_equal(dense, plain)
    assert 0 < (plain > 0).sum() < plain.size
    # Decoded, an active coordinate is what it was, and any other is 0.
    signed = plain[:, 0::2] - plain[:, 1::2]
    np.testing.assert_array_equal(basis.reconstruct(torch.from_numpy(x)).numpy(), signed)


def test_the_content_hash_hangs_on_every_threshold(tmp_path: Path) -> None:
    threshold = np.linspace(0, 1, 32).astype(np.float32)
    nudged = threshold.copy()
    nudged[31] = np.nextafter(threshold[31], np.float32(2))
    hashes = [
        load_basis(tmp_path / str(number), each).content_hash
        for number, each in enumerate((threshold, nudged, threshold))
    ]
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("fault", ["cut", "short", "negative", "not finite", "missing"])
def test_a_damaged_table_of_thresholds_is_refused(tmp_path: Path, fault: str) -> None:
    threshold = np.linspace(0, 1, 32)
    if fault in ("negative", "not finite"):
        threshold[3] = -1 if fault == "negative" else np.inf
    file = save_basis(tmp_path, threshold[: 30 if fault == "short" else 32]).path
    assert file is not None
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:40])
    elif fault == "missing":
        file.unlink()
    with pytest.raises(SaeError, match="thresholds of neurons cannot be read") as raised:
        read_thresholds(file, 32)
    assert f"remove the folder {file.parent}" in (raised.value.mend or "")


def test_neurons_that_are_off_zero_reconstruct_badly_and_are_no_mismatch(tmp_path: Path) -> None:
    basis = load_basis(tmp_path, np.full(8, 6.0))
    x = 5 + torch.randn(640, 4, generator=torch.Generator().manual_seed(0))
    sums = FidelitySums.measure(basis, x, x, find_firings(basis, x))
    assert sums.fvu is not None and sums.fvu > 1
    check_fidelity(basis, 500, sums.fvu)


# --- which basis a name means -------------------------------------------------------------


@pytest.mark.parametrize("path", ["20-mlp-neurons", "gemma-2-2b/20-mlp-neurons"])
def test_a_basis_is_named_like_an_sae_and_needs_no_file(path: str) -> None:
    assert locate_sae(path, "gemma-2-2b") == SaeSource(
        "gemma-2-2b/20-mlp-neurons", None, Site(20, "mlp"), None, path
    )
    assert locate_sae(path, "gemma-2-2b", "mlp", 20).site == Site(20, "mlp")


@pytest.mark.parametrize(
    ("path", "told", "found"),
    [
        ("gemma-2-9b/20-mlp-neurons", {}, "model gemma-2-9b"),
        ("20-mlp-neurons", {"kind": "res"}, "site res"),
        ("20-mlp-neurons", {"layer": 19}, "layer 19"),
    ],
)
def test_neurons_of_another_model_site_or_layer_than_named_are_refused(
    path: str, told: dict[str, Any], found: str
) -> None:
    with pytest.raises(SaeError, match="not the neurons of this run's model") as raised:
        locate_sae(path, "gemma-2-2b", **told)
    assert found in (raised.value.found or "")
    assert raised.value.mend == 'write "20-mlp-neurons"'


@pytest.mark.parametrize(
    "path", ["20-mlp-neuron", "20-mlp-Neurons", "020-mlp-neurons", "mlp-neurons-20", "20_neurons"]
)
def test_a_near_miss_is_answered_with_the_name_of_the_basis(path: str) -> None:
    with pytest.raises(SaeError, match="no SAE at this path") as raised:
        locate_sae(path, "gemma-2-2b")
    assert "20-mlp-neurons" in (raised.value.expected or "")
    assert raised.value.mend == 'perhaps "20-mlp-neurons" was meant'


def test_a_folder_may_not_be_called_like_a_basis(tmp_path: Path) -> None:
    file = save_tiny_sae(tmp_path, "res", 1, 8, 16)
    folder = tmp_path / "20-mlp-neurons"
    file.parent.rename(folder)
    with pytest.raises(SaeError, match="that of a neuron basis"):
        locate_sae(str(folder), "tiny", "res", 1)


# --- in a run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with neurons of two layers and an SAE; a folder is in a basis's way."""
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny_gemma(folder / "tiny-gemma-2")
    sae = save_tiny_sae(folder, "mlp", 1, 24, 16)
    (folder / "1-mlp-neurons").mkdir()
    rng = np.random.default_rng(0)
    letters = list("abcdefghij the ing,.")
    rows = [{"text": "".join(rng.choice(letters, 80))} for _ in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = folder / "config.toml"
    paths = json.dumps(["1-mlp-neurons", str(sae), "tiny-gemma-2/0-mlp-neurons"])
    config.write_text(
        f"""
        [model]
        name = "{model}"
        device = "cpu"
        [saes]
        paths = {paths}
        [corpus]
        path = "corpus.jsonl"
        [collect]
        chunks_per_part = 2
        """
    )
    return config


@pytest.fixture
def run_as_plain_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 4)
    monkeypatch.setattr(collect_setup, "PREFIX_TOKENS", 500)
    monkeypatch.setattr(flow, "collect_part", collect_part.fn)
    monkeypatch.setattr(flow, "as_is", lambda value: value)


def quiet() -> Progress:
    return Progress(io.StringIO(), animate=False)


def load(config: Config, folder: Path, progress: Progress | None = None) -> CollectJob:
    sources = sae_sources(config)
    return load_collect_job(config, sources, RunFolder(folder), progress or quiet())


def collect_shards(config: Config, folder: Path, count: int) -> dict[str, Any]:
    """Collects all shards, each in a folder of its own; gives what the parts say of each chunk."""
    said: dict[str, Any] = {}
    for number in range(1, count + 1):
        run = RunFolder(folder / f"{number}-of-{count}").create()
        collect_shard.fn(config, run, Shard(number, count), quiet(), allow_mismatch=True)
        for part in list_parts(run.parts):
            if part.stage == "collect":
                identity = json.dumps(part.manifest["identity"], sort_keys=True)
                chunks = [chunk["chunk"] for chunk in part.manifest["chunks"]]
                said |= dict.fromkeys(map(str, chunks), identity)
    return said


def test_a_name_in_the_configuration_is_the_basis_whatever_folders_there_are(tiny: Path) -> None:
    config = load_config(tiny)
    assert config.saes.paths[0].path == "1-mlp-neurons"
    assert [source.sae_id for source in sae_sources(config)] == [
        "tiny-gemma-2/1-mlp-neurons",
        "tiny-gemma-2/1-mlp-24",
        "tiny-gemma-2/0-mlp-neurons",
    ]


def test_a_layer_that_the_model_lacks_is_refused(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny)
    saes = config.saes.model_validate({"paths": ["3-mlp-neurons"]})
    with pytest.raises(ModelError, match="no layer 3"):
        load(config.model_copy(update={"saes": saes}), tmp_path)


@pytest.mark.usefixtures("run_as_plain_functions")
def test_thresholds_are_worked_out_once_and_read_again(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny)
    said = io.StringIO()
    first = load(config, tmp_path, Progress(said, animate=False))
    assert said.getvalue().startswith("neurons: 5")
    parts = {part.part_id: part for part in list_parts(tmp_path / "parts")}
    assert [part.stage for part in parts.values()] == ["neurons", "neurons"]
    said = io.StringIO()
    again = load(config, tmp_path, Progress(said, animate=False))
    assert not said.getvalue()
    assert again.identity == first.identity
    assert [basis.width for basis in again.saes] == [32, 24, 32]
    for number in (0, 2):
        assert again.saes[number].threshold.equal(first.saes[number].threshold)
    # What is believed is what lies there, and not worked out again.
    file = first.saes[0].source.path
    assert file is not None
    other = thresholds_table(np.full(32, 0.25, np.float32))
    pq.write_table(other, file)
    assert load(config, tmp_path).saes[0].threshold.unique().tolist() == [0.25]


@pytest.mark.slow
@pytest.mark.usefixtures("run_as_plain_functions")
def test_every_shard_has_the_same_thresholds_as_one_alone(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny)
    alone, apart = (collect_shards(config, tmp_path, count) for count in (1, 3))
    assert set(alone) == set(apart) == set(map(str, range(8)))
    assert len(set(chain(alone.values(), apart.values()))) == 1
    # Going on, after a part was lost.
    lost, *_ = (tmp_path / "1-of-1" / "parts").glob("collect-*")
    shutil.rmtree(lost)
    assert collect_shards(config, tmp_path, 1) == alone
    assert lost.is_dir()


@pytest.mark.usefixtures("run_as_plain_functions")
def test_each_unit_fires_on_a_hundredth_of_the_prefix(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_setup, "PREFIX_TOKENS", 10**6)
    config = load_config(tiny)
    run = RunFolder(tmp_path).create()
    collect_shard.fn(config, run, Shard(1, 1), quiet(), allow_mismatch=True)
    found = [
        pq.read_table(part.file("counts-0"))
        for part in list_parts(run.parts)
        if part.stage == "collect"
    ]
    counts = pa.concat_tables(found)
    n_active = np.zeros(32, int)
    np.add.at(n_active, counts["feature"].to_numpy(), counts["n_active"].to_numpy())
    n_tokens = sum(
        chunk["n_tokens"]
        for part in list_parts(run.parts)
        if part.stage == "collect"
        for chunk in part.manifest["chunks"]
    )
    assert n_tokens > 1000
    # Batches are cut in another way than the prefix's, so that the value at the threshold
    # itself may come out higher in its last bit.
    assert (n_active >= n_tokens // 100 - 1).all() and (n_active <= n_tokens // 100 + 1).all()


@pytest.mark.usefixtures("run_as_plain_functions")
def test_neurons_that_do_not_fit_into_memory_are_read_again_for_their_pass(
    tiny: Path, tmp_path: Path
) -> None:
    config = load_config(tiny)
    little = config.model_copy(
        update={"collect": config.collect.model_copy(update={"memory_gib": 1e-6})}
    )
    whole, job = load(config, tmp_path), load(little, tmp_path)
    assert len(job.passes) == 3 and all(map(is_released, job.saes))
    assert job.identity == whole.identity
    assert job.with_weights(2).encoder.equal(whole.saes[2].encoder)
    assert job.with_weights(2).threshold.equal(whole.saes[2].threshold)
