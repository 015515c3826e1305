"""How well an SAE fits what it reads, and the stop where it does not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scopenote.extract import fidelity
from scopenote.extract.activations import find_firings
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.collector import CollectedPart
from scopenote.extract.corpus import Document
from scopenote.extract.fidelity import FidelitySums, check_fidelity
from scopenote.extract.models import load_model
from scopenote.extract.sae_sources import SaeSource, locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site, SiteKind
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.toy.standard_library import iterate_documents
from scopenote.extract.windows import WindowShape, cut_chunks
from scopenote.store.errors import FidelityMismatch
from scopenote.store.splits import document_id

from .brute_force import make_job


def whole_number_sae(stated_l0: float | None = None) -> Sae:
    job = make_job(0, (37,), WindowShape(), SketchSizes())
    source = SaeSource("model/3-res-37", Path(), Site(3, "res"), stated_l0, "my-sae")
    return replace(job.saes[0], source=source)


def test_fidelity_is_measured_on_every_64th_token() -> None:
    sae = whole_number_sae()
    x = torch.from_numpy(np.random.default_rng(2).integers(-3, 4, (150, 5)).astype(np.float32))
    found = FidelitySums.measure(sae, x, x, find_firings(sae, x))
    sample = x[[0, 64, 128]]
    error = sample - sae.decode(sae.encode(sample))
    assert found.n_tokens == 3
    assert found.sum_x.tolist() == sample.sum(0).tolist()
    assert found.sum_x_sq == sample.square().sum()
    assert found.sum_error_sq == error.square().sum()


def test_fvu_is_one_for_the_mean_and_nothing_where_nothing_varies() -> None:
    x = np.random.default_rng(0).normal(size=(50, 5))
    error = np.square(x - x.mean(0)).sum()
    sums = FidelitySums(50, x.sum(0), float(np.square(x).sum()), float(error))
    assert (sums + sums).fvu == pytest.approx(1)
    assert FidelitySums(2, np.array([2.0]), 2.0, 0.0).fvu is None


@pytest.mark.parametrize(
    ("stated", "mean_l0", "fvu", "named"),
    [
        (70, 36, 0.2, None),
        (70, 139, 0.9, None),
        (None, 5000, 0.2, None),
        (70, 70, None, None),
        (70, 34, 0.2, "34.0 active features"),
        (70, 141, 0.2, "141.0 active features"),
        (None, 70, 1.01, "unexplained of 1.01"),
        (70, 0, 3.0, "0.0 active features a token and a fraction"),
    ],
)
def test_an_l0_off_by_two_or_an_fvu_above_one_is_a_mismatch(
    stated: float | None, mean_l0: float, fvu: float | None, named: str | None
) -> None:
    sae = whole_number_sae(stated)
    if named is None:
        check_fidelity(sae, mean_l0, fvu)
        return
    with pytest.raises(FidelityMismatch, match=named) as raised:
        check_fidelity(sae, mean_l0, fvu)
    assert raised.value.where == "my-sae, which reads the output of model.layers[3]"
    assert "--allow-mismatch" in (raised.value.mend or "")


def test_a_transcoder_s_mismatch_names_what_it_reads_and_what_it_reconstructs() -> None:
    sae = whole_number_sae()
    transcoder = replace(sae, source=replace(sae.source, site=Site(3, "transcoder")))
    with pytest.raises(FidelityMismatch) as raised:
        check_fidelity(transcoder, 70, 1.5)
    where = raised.value.where or ""
    assert "input of model.layers[3].pre_feedforward_layernorm" in where
    assert where.endswith("reconstructs the output of model.layers[3].post_feedforward_layernorm")


@cache
def some_documents() -> list[Document]:
    return [Document(text, document_id(text)) for text in islice(iterate_documents(), 12)]


def collect_toy(trained_on: SiteKind, kind: SiteKind, allow_mismatch: bool = False) -> int:
    """Collects some text with an SAE of the toy that reads this site; gives the tokens."""
    saes = Path(str(files("scopenote.extract.toy").joinpath("saes")))
    (path,) = (p for p in saes.rglob("params.npz") if trained_on in p.relative_to(saes).parts)
    source = locate_sae(str(path), "toy-gemma-2", kind, 1)
    model = load_model("toy", [source.site], "cpu")
    sae = load_sae(source, model.config)
    job = CollectJob(model, [sae], WindowShape(), SketchSizes(), 4096)
    chunks = job.pending_chunks(cut_chunks(some_documents()), {}, 30_000)
    *_, part = job.collect(chunks, allow_mismatch)
    assert isinstance(part, CollectedPart)
    return part.n_tokens


def test_an_sae_on_its_own_tensor_is_no_mismatch_and_on_another_it_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fidelity, "LEAST_TOKENS", 4096)
    assert collect_toy("res", "res") > 4096
    with pytest.raises(FidelityMismatch, match=r"model\.layers\[1\]\.post_feedforward_layernorm"):
        collect_toy("res", "mlp")
    assert collect_toy("res", "mlp", allow_mismatch=True) > 4096
