from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scopenote.extract import activations
from scopenote.extract.activations import find_firings, reconstruct
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.collector import CollectedPart
from scopenote.extract.corpus import Document
from scopenote.extract.models import load_model
from scopenote.extract.sites import Site, SiteReader
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.windows import WindowShape, cut_chunks, tokenize_chunk
from scopenote.store.errors import ModelError
from scopenote.store.splits import document_id

from .brute_force import WholeNumberModel, make_job

SIZES = SketchSizes(top=(2, 1, 2), sample=(2, 3, 3), background=(3, 2, 4))
SHAPE = WindowShape(window_tokens=3, prefix_tokens=2, sequence_tokens=8, seed=7)


def collect(job: CollectJob, texts: list[str]) -> CollectedPart:
    chunks = cut_chunks(Document(text, document_id(text)) for text in texts)
    tokenized = [tokenize_chunk(c, job.model.tokenizer, job.model.name, job.shape) for c in chunks]
    *_, part = job.collect(tokenized)
    assert isinstance(part, CollectedPart)
    return part


@pytest.mark.parametrize("path", ["_FoundOnCpu", "_FoundOnGpu"])
def test_firings_in_blocks_are_those_of_the_dense_encoding(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What gathers them on a GPU needs none.
    monkeypatch.setattr(activations, "_FoundOnCpu", getattr(activations, path))
    sae = make_job(0, (37,), SHAPE, SIZES).saes[0]
    x = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (50, 5)).astype(np.float32))
    dense = sae.encode(x).numpy()
    feature, token = np.nonzero(dense.T)
    assert len(feature) > 100
    for block_values in (1, 50, 333, 10**6):
        found = find_firings(sae, x, block_values)
        np.testing.assert_array_equal(found.feature, feature)
        np.testing.assert_array_equal(found.token, token)
        np.testing.assert_array_equal(found.value, dense.T[feature, token])


@pytest.mark.parametrize("k", [1, 4, 37])
def test_a_top_k_sae_fires_with_the_largest_of_each_token(k: int) -> None:
    sae = make_job(0, (37,), SHAPE, SIZES).saes[0]
    sae = replace(sae, k=k, encoder=torch.randn(37, 5, generator=torch.Generator().manual_seed(0)))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32))
    pre = (x.double() @ sae.encoder.double().T + sae.encoder_bias).numpy()
    rank = (-pre).argsort(axis=1).argsort(axis=1)
    dense = np.where((rank < k) & (pre > sae.threshold.numpy()), pre, 0)
    np.testing.assert_allclose(sae.encode(x), dense, atol=1e-5)
    feature, token = np.nonzero(dense.T)
    assert 20 < len(feature) <= 50 * k
    for block_values in (1, 50, 333, 10**6):
        found = find_firings(sae, x, block_values)
        np.testing.assert_array_equal(found.feature, feature)
        np.testing.assert_array_equal(found.token, token)
        np.testing.assert_allclose(found.value, dense.T[feature, token], atol=1e-5)


def test_the_sparse_reconstruction_is_the_dense_one() -> None:
    sae = make_job(0, (37,), SHAPE, SIZES).saes[0]
    x = torch.from_numpy(np.random.default_rng(1).integers(-3, 4, (50, 5)).astype(np.float32))
    x[7] = -1000  # a token on which nothing fires, or nearly
    for skip in (None, torch.eye(5) * 3 + torch.ones(5, 5).triu()):
        sae = replace(sae, skip=skip)
        found = reconstruct(sae, find_firings(sae, x), x)
        torch.testing.assert_close(found, sae.reconstruct(x))
        straight = 0 if skip is None else x @ skip
        torch.testing.assert_close(found, sae.decode(sae.encode(x)) + straight)


def test_bos_is_fed_and_never_recorded() -> None:
    # The made-up model gives BOS a vector of thousands, on which features fire hugely.
    job = make_job(0, (6,), SHAPE, SIZES)
    bos = job.model.read_sites(torch.tensor([[2]]), [job.saes[0].site])[job.saes[0].site][0]
    assert job.saes[0].encode(bos).max() > 500
    part = collect(job, ["abcab", "bca", "ccba", "abba"])
    assert part.tables["features-0"]["max_activation"].to_numpy().max() < 100


def test_special_tokens_inside_the_text_are_not_recorded_and_not_counted() -> None:
    job = make_job(0, (6,), SHAPE, SIZES)
    clean = collect(job, ["abcdabc"])
    job.model.tokenizer.all_special_ids = (0, 1, 2, 3, 7)  # the letter d
    spoilt = collect(job, ["abcdabc"])
    assert (clean.n_tokens, spoilt.n_tokens) == (7, 6)
    positions = spoilt.tables["contexts-0"]["positions"].to_pylist()
    occurrences = spoilt.tables["contexts-0"]["occurrence"].to_pylist()
    fired = {o + p for o, places in zip(occurrences, positions, strict=True) for p in places}
    assert 3 not in fired
    assert fired


class TwoSiteModel(WholeNumberModel):
    """Its MLP puts out thrice what its transcoders read."""

    def read_sites(
        self, input_ids: torch.Tensor, sites: list[Site], position_ids: torch.Tensor | None = None
    ) -> dict[Site, torch.Tensor]:
        read = super().read_sites(input_ids, sites, position_ids)
        return {site: 3 * x if site.kind == "mlp" else x for site, x in read.items()}


def test_a_transcoder_is_measured_by_the_mlp_s_output() -> None:
    job = make_job(0, (6,), SHAPE, SIZES)
    model = TwoSiteModel(job.model.own, job.model.before)
    source = replace(job.saes[0].source, site=Site(1, "transcoder"))
    part = collect(replace(job, model=model, saes=[replace(job.saes[0], source=source)]), ["abcab"])
    # Of one batch of one sequence the first token after BOS is the only one measured.
    read = model.read_sites(torch.tensor([[2, 4]]), [source.site])[source.site][0, 1:]
    error = 3 * read - job.saes[0].decode(job.saes[0].encode(read))
    (row,) = part.tables["fidelity"].to_pylist()
    assert row["sum_x"] == (3 * read[0]).tolist()
    assert (row["sum_x_sq"], row["sum_error_sq"]) == (
        float((3 * read).square().sum()),
        float(error.square().sum()),
    )


def test_a_corpus_in_which_nothing_fires_still_makes_a_part() -> None:
    job = make_job(0, (3,), SHAPE, SIZES)
    job.saes[0].threshold.fill_(1e9)
    part = collect(job, ["abc", "cab"])
    assert part.n_tokens == 6
    assert part.tables["contexts-0"].num_rows == 0
    assert part.tables["pool"].num_rows == 2


def test_where_not_one_sequence_fits_the_message_adds_up_what_would_have_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    (sae,) = make_job(0, (6,), SHAPE, SIZES).saes
    model = load_model("toy", [sae.site], "cpu")
    monkeypatch.setattr(SiteReader, "read", refuse)
    job = CollectJob(model, [sae], SHAPE, SIZES, 24)
    with pytest.raises(ModelError, match="too small for one sequence") as raised:
        collect(job, ["abcab"])
    weights = sum(weight.nbytes for weight in model.network.parameters()) / 2**30
    assert f"{weights:.2f} GiB for the model's layers" in str(raised.value.expected)
