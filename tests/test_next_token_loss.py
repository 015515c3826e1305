"""Next-token loss with something put in, against the model's own head, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from scopenote.extract import next_token_loss as module
from scopenote.extract.corpus import Document
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.next_token_loss import (
    LossText,
    loss_text,
    mean_loss,
    own_loss,
    spliced_loss,
    token_losses,
    zeroed_loss,
)
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.saes import Sae
from scopenote.extract.sites import SITE_KINDS, Site, SiteKind, hook_site, site_width
from scopenote.extract.splicing import changed_site, reconstruct_in_blocks
from scopenote.extract.windows import Chunk, TokenizedChunk, WindowShape, tokenize_chunk
from scopenote.store.errors import ModelError
from torch import Tensor
from transformers import AutoModelForCausalLM

from .tiny_gemma import BOS, EOS, sae_arrays, save_tiny_gemma

SHAPE = WindowShape(window_tokens=4, prefix_tokens=2, sequence_tokens=13)
TEXTS = ["the thing in a ring", "an anthem, then another", "x", "in the end the ant ran", "er"]
Rebuilt = Callable[[Tensor], Tensor]


GENERATIONS = [pytest.param(2, id="gemma-2"), pytest.param(3, id="gemma-3", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=GENERATIONS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generation: Literal[2, 3] = request.param
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny", generation=generation)


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    loaded = load_model(str(folder), [], "cpu", "float32")
    if loaded.config.model_type == "gemma2":
        # So low that it bends the small logits of a tiny model.
        loaded.config.final_logit_softcapping = 1.0
    return loaded


@pytest.fixture(scope="module")
def chunks(model: SubjectModel) -> list[TokenizedChunk]:
    documents = [Document(text, f"{number:016x}") for number, text in enumerate(TEXTS)]
    cut = [Chunk(0, tuple(documents[:3])), Chunk(1, tuple(documents[3:]))]
    return [tokenize_chunk(chunk, model.tokenizer, model.name, SHAPE) for chunk in cut]


@pytest.fixture(scope="module")
def text(model: SubjectModel, chunks: list[TokenizedChunk]) -> LossText:
    return loss_text(chunks, model, max_batch_tokens=60)


@pytest.fixture(scope="module")
def own(model: SubjectModel, text: LossText) -> float | None:
    return own_loss(model, text)


def make_sae(model: SubjectModel, site: Site, seed: int = 0) -> Sae:
    arrays = sae_arrays(24, site_width(site, model.config), seed=seed)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Sae(
        SaeSource(f"tiny/{site.layer}-{site.kind}", None, site, None, "made up"),
        weights["W_enc"].T.contiguous(),
        weights["b_enc"],
        weights["threshold"],
        weights["W_dec"],
        weights["b_dec"],
        content_hash="0",
    )


def exact_sae(model: SubjectModel, site: Site) -> Sae:
    """x and -x rectified: it loses nothing."""
    d = site_width(site, model.config)
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    zeros = torch.zeros(2 * d)
    return replace(
        make_sae(model, site),
        encoder=both,
        decoder=both.clone(),
        encoder_bias=zeros,
        threshold=zeros,
        decoder_bias=torch.zeros(d),
    )


def sequences(model: SubjectModel) -> list[list[int]]:
    """The text as the model sees it, plainly: BOS and up to twelve tokens of a document."""
    found = []
    for text in TEXTS:
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        found += [[BOS, *ids[at : at + 12]] for at in range(0, len(ids), 12)]
    return found


@pytest.fixture(scope="module")
def network(folder: Path, model: SubjectModel) -> Any:
    """The whole model as transformers has it, with its own head."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    loaded.config.final_logit_softcapping = model.config.final_logit_softcapping
    return loaded


def plain_loss(network: Any, model: SubjectModel, hook: Callable[[Any], None]) -> float:
    """The mean over tokens by the whole network's own logits, one sequence at a time."""
    network = deepcopy(network)
    hook(network.model)
    losses = []
    with torch.inference_mode():
        for ids in sequences(model):
            logits = network(input_ids=torch.tensor([ids])).logits[0].double()
            predicted = logits.log_softmax(-1)
            losses += [-float(predicted[at, ids[at + 1]]) for at in range(1, len(ids) - 1)]
    return sum(losses) / len(losses)


def after_bos(new: Tensor, old: Tensor) -> Tensor:
    return torch.cat([old[:, :1], new[:, 1:]], dim=1)


def hook_by_hand(network: Any, kind: SiteKind, layer: int, rebuild: Rebuilt) -> None:
    """Puts `rebuild(what is read)` in place of the target of this kind of SAE, but for BOS."""
    block = network.layers[layer]
    before: list[Tensor] = []

    def normed(module: Any, inputs: Any, output: Tensor) -> None:
        x = inputs[0]
        rms = (x.square().mean(-1, keepdim=True) + module.eps).sqrt()
        before[:] = [output if kind == "mlp_in" else x / rms]

    match kind:
        case "res":
            block.register_forward_hook(lambda m, i, o: after_bos(rebuild(o), o))
        case "mlp":
            block.post_feedforward_layernorm.register_forward_hook(
                lambda m, i, o: after_bos(rebuild(o), o)
            )
        case "att":
            block.self_attn.o_proj.register_forward_pre_hook(
                lambda m, i: (after_bos(rebuild(i[0]), i[0]),)
            )
        case "transcoder" | "mlp_in":
            block.pre_feedforward_layernorm.register_forward_hook(normed)
            block.post_feedforward_layernorm.register_forward_hook(
                lambda m, i, o: after_bos(rebuild(before[0]), o)
            )
        case "embedding":
            network.embed_tokens.register_forward_hook(
                lambda m, i, o: after_bos(rebuild(m.weight[i[0]]) * m.scalar_embed_scale, o)
            )


def test_the_loss_is_that_of_the_whole_network(
    network: Any, model: SubjectModel, text: LossText, own: float
) -> None:
    assert own == pytest.approx(plain_loss(network, model, lambda _: None), rel=1e-5)
    assert text.n_predictions == sum(len(ids) - 2 for ids in sequences(model))


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_a_random_sae_costs_what_a_network_with_hooks_of_its_own_loses(
    network: Any, model: SubjectModel, text: LossText, own: float, kind: SiteKind
) -> None:
    site = Site(0 if kind == "embedding" else 1, kind)
    sae = make_sae(model, site)

    def rebuild(x: Tensor) -> Tensor:
        pre = x[0] @ sae.encoder.T + sae.encoder_bias
        return ((pre * (pre > sae.threshold)) @ sae.decoder + sae.decoder_bias)[None]

    expected = plain_loss(
        network, model, lambda base: hook_by_hand(base, kind, site.layer, rebuild)
    )
    assert spliced_loss(model, text, sae) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - own) > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in SITE_KINDS if Site(0, kind).target.kind == kind])
def test_zeros_cost_what_a_network_with_hooks_of_its_own_loses(
    network: Any, model: SubjectModel, text: LossText, own: float, kind: SiteKind
) -> None:
    layer = 0 if kind == "embedding" else 2
    expected = plain_loss(
        network, model, lambda base: hook_by_hand(base, kind, layer, torch.zeros_like)
    )
    assert zeroed_loss(model, text, Site(layer, kind)) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - own) > 1e-3


@pytest.mark.parametrize("kind", ["res", "mlp", "att", "embedding"])
def test_an_sae_that_loses_nothing_costs_nothing(
    model: SubjectModel, text: LossText, own: float, kind: SiteKind
) -> None:
    site = Site(0, kind)
    assert spliced_loss(model, text, exact_sae(model, site)) == own
    changed = mean_loss(model, text, lambda _: changed_site(model.network, site, lambda x: x))
    assert changed == own


def test_what_a_transcoder_of_gemma_scope_reads_cannot_be_changed(
    model: SubjectModel, text: LossText
) -> None:
    handle = hook_site(model.network, Site(1, "transcoder"), lambda x: x)
    try:
        with pytest.raises(ValueError, match="transcoder of layer 1"):
            own_loss(model, text)
    finally:
        handle.remove()


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("at_once", [1, 20, 55])
def test_blocks_of_the_vocabulary_head_give_what_one_block_gives(
    cap: float | None, at_once: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(7, 4, generator=generator)
    head = torch.randn(10, 4, generator=generator)
    following = torch.randint(10, (7,), generator=generator)
    logits = vectors.double() @ head.double().T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = -logits.log_softmax(-1)[torch.arange(7), following]
    for size in (at_once, 10**6):
        found = token_losses(vectors, following, head, cap, size)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_blocks_of_tokens_reconstruct_what_one_block_does(model: SubjectModel) -> None:
    sae = make_sae(model, Site(1, "res"))
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    for at_once in (1, 24, 100):
        torch.testing.assert_close(reconstruct_in_blocks(sae, x, at_once), sae.reconstruct(x))


def test_the_size_of_batches_changes_nothing(
    model: SubjectModel, chunks: list[TokenizedChunk], text: LossText, own: float
) -> None:
    single = loss_text(chunks, model, max_batch_tokens=1)
    assert {len(batch.input_ids) for batch in single.batches} == {1}
    assert len(text.batches) == 2
    assert own_loss(model, single) == pytest.approx(own, rel=1e-6)
    sae = make_sae(model, Site(1, "res"))
    expected = spliced_loss(model, text, sae)
    assert spliced_loss(model, single, sae) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 12, 13, 30, 10**6])
def test_the_text_is_the_first_sequences_that_have_enough_tokens(
    model: SubjectModel, chunks: list[TokenizedChunk], n_tokens: int
) -> None:
    asked: list[int] = []

    def ask() -> Any:
        for chunk in chunks:
            asked.append(chunk.index)
            yield chunk

    found = loss_text(ask(), model, max_batch_tokens=40, n_tokens=n_tokens)
    seen = []
    for batch in found.batches:
        for ids, recorded in zip(batch.input_ids.ravel(), batch.is_recorded.ravel(), strict=True):
            if ids == BOS:
                seen.append([BOS])
            elif recorded:
                seen[-1].append(int(ids))
    expected, total = [], 0
    for sequence in sequences(model):
        if total >= n_tokens:
            break
        expected.append(sequence)
        total += len(sequence) - 1
    assert sorted(seen) == sorted(expected)
    in_first = sum(chunks[0].sequence_length)
    assert asked == ([0] if n_tokens <= in_first else [0, 1])


def test_special_tokens_of_a_conversation_are_predicted_but_not_changed(
    model: SubjectModel,
) -> None:
    ids = model.tokenizer("the end", add_special_tokens=False).input_ids
    spoken = Document("the end<eos>an end", "0" * 16, is_chat=True)
    chunk = tokenize_chunk(Chunk(0, (spoken,)), model.tokenizer, model.name, SHAPE)
    (batch,) = loss_text([chunk], model, max_batch_tokens=40).batches
    (at,) = (batch.input_ids[0] == EOS).nonzero()[0].tolist()
    assert at == 1 + len(ids)
    assert not batch.is_recorded[0, [0, at]].any()
    assert batch.is_recorded[0].sum() == chunk.n_tokens - 1
    assert batch.predicts[0, at - 1]
    assert not batch.predicts[0, at]
    assert not batch.predicts[0, -1]


def test_a_text_of_single_tokens_has_no_loss(model: SubjectModel) -> None:
    single = Document("x", "0" * 16)
    chunk = tokenize_chunk(Chunk(0, (single, single)), model.tokenizer, model.name, SHAPE)
    text = loss_text([chunk], model, max_batch_tokens=40)
    assert text.n_predictions == 0
    assert own_loss(model, text) is None


def test_without_the_head_there_is_no_loss(model: SubjectModel, text: LossText) -> None:
    untied = replace(model, config=type(model.config)(**{"tie_word_embeddings": False}))
    assert own_loss(untied, text) is None


@pytest.mark.parametrize("room", [13, 0])
def test_where_the_device_has_no_room_batches_are_halved_till_one_sequence_is_left(
    model: SubjectModel, text: LossText, own: float, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    seen: list[int] = []

    def crowded(*args: Any) -> Tensor:
        # Where memory runs out in truth: in what is largest.
        seen.append(len(args[0]))
        if len(args[0]) > room:
            raise torch.OutOfMemoryError
        return token_losses(*args)

    monkeypatch.setattr(module, "token_losses", crowded)
    if room:
        assert own_loss(model, text) == pytest.approx(own, rel=1e-6)
        assert max(seen) > room
    else:
        with pytest.raises(ModelError, match="too small for one sequence"):
            own_loss(model, text)


def test_a_change_ends_with_its_pass(model: SubjectModel, text: LossText, own: float) -> None:
    for site in (Site(1, "transcoder"), Site(0, "embedding")):
        spliced_loss(model, text, make_sae(model, site))
    assert own_loss(model, text) == own


def test_a_gemma_3_has_no_soft_cap_and_an_embedding_of_its_own_scale(tmp_path: Path) -> None:
    folder = save_tiny_gemma(tmp_path / "tiny", generation=3)
    model = load_model(str(folder), [], "cpu", "float32")
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    chunk = Chunk(0, (Document(TEXTS[0], "0" * 16),))
    text = loss_text(
        [tokenize_chunk(chunk, model.tokenizer, model.name, SHAPE)], model, max_batch_tokens=60
    )
    losses = []
    with torch.inference_mode():
        for ids in sequences(model)[: len(text.batches[0].input_ids)]:
            logits = network(input_ids=torch.tensor([ids])).logits[0].double()
            losses += torch.nn.functional.cross_entropy(
                logits[1:-1], torch.tensor(ids[2:]), reduction="none"
            ).tolist()
    assert own_loss(model, text) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    sae = exact_sae(model, Site(0, "embedding"))
    assert spliced_loss(model, text, sae) == own_loss(model, text)
