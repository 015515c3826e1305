"""What a model says while a feature is turned up, against transformers' own whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scopenote.extract.models import SubjectModel, load_model, token_texts
from scopenote.extract.sites import Site, SiteKind, hook_site
from scopenote.extract.splicing import changed_site
from scopenote.extract.steered_outputs import (
    NO_DIRECTION,
    NO_NUMBERS,
    SteeredOutputs,
    SteeringBench,
    single_token,
    site_norm,
    steered_outputs,
)
from scopenote.store.errors import ModelError
from torch import Tensor
from transformers import AutoModelForCausalLM

from .test_steering import make_sae
from .tiny_gemma import BOS, save_tiny_gemma

LAYER, N_WRITTEN = 1, 6
TEXTS = [[270 + 7 * row + column for column in range(5)] for row in range(3)]
KINDS: tuple[SiteKind, ...] = ("res", "mlp", "att", "transcoder", "embedding")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(tmp_path_factory.mktemp("steered") / "tiny-gemma-2")


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), [], "cpu", "float32")


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    """The whole model as transformers has it, with its own head."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def make_bench(
    model: SubjectModel, kind: SiteKind = "res", strength: float = 1.0, seed: int = 0
) -> SteeringBench:
    return SteeringBench.of(model, make_sae(model, kind), TEXTS, strength, seed, 4, N_WRITTEN)


def turned_up(bench: SteeringBench, feature: int) -> SteeredOutputs:
    found = steered_outputs(bench, feature)
    assert isinstance(found, SteeredOutputs), found
    return found


def logprobs_by_hand(network: Any, bench: SteeringBench, vector: Tensor | None) -> Tensor:
    """Of the whole model, one prompt at a time, with this vector added behind BOS."""

    def add(x: Tensor) -> Tensor:
        return x if vector is None else torch.cat([x[:, :1], x[:, 1:] + vector], dim=1)

    handle = hook_site(network.model, bench.sae.target, add)
    try:
        with torch.inference_mode():
            logits = [
                network(input_ids=torch.tensor([[BOS, *text]]), use_cache=False).logits[0, -1]
                for text in TEXTS
            ]
    finally:
        handle.remove()
    return torch.stack(logits).log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_those_of_the_whole_model_with_the_vector_added(
    model: SubjectModel, network: Any, kind: SiteKind
) -> None:
    bench = make_bench(model, kind)
    row = bench.sae.decoder[3]
    vector = row / row.norm() * bench.norm
    before, after = (logprobs_by_hand(network, bench, each) for each in (None, vector))
    found = turned_up(bench, 3)
    expected = (after - before).mean(0).numpy()
    np.testing.assert_allclose(found.changes, expected, rtol=1e-3, atol=2e-4)
    assert np.abs(found.changes).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_is_as_long_for_every_feature_and_nothing_at_bos(
    model: SubjectModel, kind: SiteKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(model, kind, strength=0.7)
    # Decoder rows of very different lengths.
    lengths = torch.linspace(0.1, 30, bench.sae.width)[:, None]
    bench = replace(bench, sae=replace(bench.sae, decoder=bench.sae.decoder * lengths))
    changes: list[tuple[Site, Any]] = []

    def heard(network: Any, site: Site, change: Any) -> Any:
        changes.append((site, change))
        return changed_site(network, site, change)

    monkeypatch.setattr("scopenote.extract.steered_outputs.changed_site", heard)
    x = torch.zeros(2, 4, bench.sae.decoder.shape[1])
    for feature in (0, 5, bench.sae.width - 1):
        steered_outputs(bench, feature)
        site, change = changes.pop()
        added = change(x)
        assert site == bench.sae.target
        assert not added[:, 0].any()
        norms = added[:, 1:].norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, bench.norm), rtol=1e-5, atol=0)


def test_the_norm_is_a_share_of_the_sites_own_vectors_at_text(model: SubjectModel) -> None:
    site = Site(LAYER, "res")
    prompts = torch.tensor([[BOS, *text] for text in TEXTS])
    x = model.read_sites(prompts, [site])[site][:, 1:].reshape(-1, 16)
    by_hand = float(np.sqrt(np.mean([float(row @ row) for row in x])))
    assert site_norm(model, site, prompts) == pytest.approx(by_hand, rel=1e-6)
    assert make_bench(model, strength=0.25).norm == pytest.approx(by_hand / 4, rel=1e-6)


def test_promoted_tokens_are_those_that_rise_most_without_special_ones(
    model: SubjectModel,
) -> None:
    found = turned_up(make_bench(model), 3)
    order = np.argsort(-found.changes, kind="stable").tolist()
    special = set(model.tokenizer.all_special_ids)
    best = [token for token in order if token not in special][:4]
    assert list(found.promoted) == token_texts(model.tokenizer, best)


def test_the_same_again_is_the_same_whatever_else_was_turned_up(model: SubjectModel) -> None:
    bench = make_bench(model)
    first = turned_up(bench, 3)
    turned_up(bench, 4)
    again = turned_up(make_bench(model), 3)
    assert np.array_equal(first.changes, again.changes)
    assert (first.promoted, first.written) == (again.promoted, again.written)
    assert turned_up(make_bench(model, seed=1), 3).written != first.written
    assert np.array_equal(turned_up(make_bench(model, seed=1), 3).changes, first.changes)


def test_what_is_written_is_drawn_token_by_token_from_the_steered_model(
    model: SubjectModel, network: Any
) -> None:
    bench = make_bench(model)
    row = bench.sae.decoder[3]
    vector = row / row.norm() * bench.norm
    draw, ids = torch.Generator().manual_seed(0), bench.prompts
    add = lambda x: torch.cat([x[:, :1], x[:, 1:] + vector], dim=1)  # noqa: E731
    handle = hook_site(network.model, bench.sae.target, add)
    try:
        with torch.inference_mode():
            for _ in range(N_WRITTEN):
                logits = network(input_ids=ids, use_cache=False).logits[:, -1]
                drawn = torch.multinomial(logits.softmax(-1), 1, generator=draw)
                ids = torch.cat([ids, drawn], dim=1)
    finally:
        handle.remove()
    special = set(model.tokenizer.all_special_ids)
    expected = []
    for row_ids in ids[:, len(TEXTS[0]) + 1 :].tolist():
        end = next((n for n, token in enumerate(row_ids) if token in special), N_WRITTEN)
        expected.append("".join(token_texts(model.tokenizer, row_ids[:end])))
    found = turned_up(bench, 3).written
    # Single bytes that spell a character are joined.
    assert [text for text in found if "<0x" not in text] == [
        text for text, shown in zip(expected, found, strict=True) if "<0x" not in shown
    ]
    assert len(found) == len(TEXTS)


def test_a_decoder_row_of_zeros_has_no_direction(model: SubjectModel) -> None:
    bench = make_bench(model)
    decoder = bench.sae.decoder.clone()
    decoder[3] = 0
    assert steered_outputs(replace(bench, sae=replace(bench.sae, decoder=decoder)), 3) == (
        NO_DIRECTION
    )


def test_a_model_driven_beyond_finite_numbers_is_a_reason(model: SubjectModel) -> None:
    assert steered_outputs(make_bench(model, strength=1e39), 3) == NO_NUMBERS
    # And nothing of it stays.
    bench = make_bench(model)
    assert bool(bench.unsteered.isfinite().all())


def test_a_model_with_a_head_of_its_own_says_so(folder: Path) -> None:
    untied = load_model(str(folder), [], "cpu", "float32")
    untied.config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="head that is not loaded"):
        make_bench(untied)


def test_a_text_is_a_token_where_the_tokenizer_writes_it_as_one(model: SubjectModel) -> None:
    tokenizer = model.tokenizer
    assert token_texts(tokenizer, [single_token(tokenizer, " the")]) == [" the"]
    assert single_token(tokenizer, "the ring") is None
    assert single_token(tokenizer, "") is None
    # Spelled in a label, it is text.
    assert single_token(tokenizer, "<eos>") is None
