"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scopenote.extract.activations import find_firings
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.collector import CollectedPart
from scopenote.extract.corpus import Document
from scopenote.extract.models import load_model
from scopenote.extract.own_text import read_own_text
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import load_sae
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.steering import compare_steered
from scopenote.extract.windows import WindowShape, cut_chunks, tokenize_chunk
from scopenote.store.splits import document_id

from .tiny_gemma import save_tiny_gemma, save_tiny_sae, site_inputs

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

WORDS = ("the", "thing", "and", "another", "in", "there", "ring", "that", "an", "of", "Tin")


def make_texts() -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(3, 60))) for _ in range(60)]


def make_job(folder: Path, device: str, dtype: str) -> CollectJob:
    model_folder = folder / "tiny-gemma-2"
    if not model_folder.exists():
        save_tiny_gemma(model_folder)
        for kind, width in (("res", 16), ("mlp", 16), ("att", 24)):
            inputs = site_inputs(model_folder, kind, 1)
            save_tiny_sae(folder / "saes", kind, 1, 64, width, inputs=inputs)
    paths = sorted((folder / "saes").rglob("params.npz"))
    sources = [locate_sae(str(path), "tiny-gemma-2") for path in paths]
    model = load_model(str(model_folder), [source.site for source in sources], device, dtype)
    saes = [load_sae(source, model.config).to(model.device) for source in sources]
    return CollectJob(model, saes, WindowShape(), SketchSizes(), 512)


def collect(job: CollectJob) -> CollectedPart:
    chunks = cut_chunks(Document(text, document_id(text)) for text in make_texts())
    tokenized = [tokenize_chunk(c, job.model.tokenizer, job.model.name, job.shape) for c in chunks]
    *_, part = job.collect(tokenized, allow_mismatch=True)
    assert isinstance(part, CollectedPart)
    return part


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_finds_the_firings_of_the_dense_encoding(tmp_path: Path, dtype: str) -> None:
    job = make_job(tmp_path, GPU, dtype)
    ids = torch.tensor(job.model.tokenizer(make_texts()[0])["input_ids"])[None]
    for sae in job.saes:
        x = job.model.read_sites(ids, [sae.site])[sae.site][0]
        dense = sae.encode(x).cpu().numpy().T
        found = find_firings(sae, x)
        again = np.zeros_like(dense)
        again[found.feature, found.token] = found.value
        # What lies at the threshold may fall on either side.
        differ = (again > 0) != (dense > 0)
        assert differ.mean() < 0.001
        np.testing.assert_allclose(again[~differ], dense[~differ], rtol=1e-4, atol=1e-5)
        assert (dense > 0).sum() > 10


def test_a_gpu_collects_what_a_cpu_does(tmp_path: Path) -> None:
    there, here = (collect(make_job(tmp_path, device, "float32")) for device in (GPU, "cpu"))
    for name in ("pool", "totals", "chunks"):
        assert there.tables[name].equals(here.tables[name])
    for number in range(3):
        features = [part.tables[f"features-{number}"] for part in (there, here)]
        peaks = [table["max_activation"].to_numpy() for table in features]
        np.testing.assert_allclose(*peaks, rtol=1e-3, atol=1e-3)
        counts = [part.tables[f"counts-{number}"]["n_active"].to_numpy() for part in (there, here)]
        np.testing.assert_allclose(*counts, rtol=0.02, atol=2)
        assert counts[0].sum() > 100


def test_a_gpu_without_room_for_a_batch_takes_its_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, GPU, "float32")
    whole = collect(job)
    read = type(job.model).read_sites

    def read_if_there_is_room(model: object, ids: torch.Tensor, *rest: object) -> object:
        if ids.numel() > 300:
            torch.empty(1 << 50, device=GPU)  # more than any card has
        return read(model, ids, *rest)

    monkeypatch.setattr(type(job.model), "read_sites", read_if_there_is_room)
    halved = collect(replace(job))
    assert halved.too_large is not None
    assert whole.too_large is None
    for number in range(3):
        counts = [part.tables[f"counts-{number}"]["n_active"] for part in (whole, halved)]
        np.testing.assert_allclose(*(c.to_numpy() for c in counts), rtol=0.02, atol=2)


def test_a_gpu_reads_and_writes_what_a_cpu_does_while_steered(tmp_path: Path) -> None:
    make_job(tmp_path, "cpu", "float32")
    found = []
    for device in ("cpu", GPU):
        model = load_model(str(tmp_path / "tiny-gemma-2"), [], device, "float32")
        for path in sorted((tmp_path / "saes").rglob("params.npz")):
            sae = load_sae(locate_sae(str(path), "tiny-gemma-2"), model.config).to(model.device)
            own = read_own_text(model, sae, [3, 5], make_texts()[0], WindowShape())
            pair = compare_steered(model, sae, 3, 2.5, make_texts()[1], 8, seed=1)
            found.append((own.activations, pair.steered.probabilities.numpy()))
    half = len(found) // 2
    for of_cpu, of_gpu in zip(found[:half], found[half:], strict=True):
        for one, other in zip(of_cpu, of_gpu, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
