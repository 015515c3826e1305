"""Measure the toy on text it was not trained on, and write the figures that its README quotes.

The model is held against n-gram models, each autoencoder against the activations themselves, and
each feature against a table of tokens: the share of features that a token alone predicts says how
dull an autoencoder is.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Gemma2ForCausalLM

from .train_saes import (
    BOS,
    LAYER,
    SEQUENCE_LENGTH,
    TARGET_L0,
    JumpReLU,
    collect_activations,
    first_tokens,
    load_base_model,
    load_sae,
    measure_fidelity,
)

DISCOUNT = 0.75
SHRINKAGE = 5.0
"""Occurrences of a token that weigh as much as the mean over all tokens does."""
TOKENS_FOR_LOOKUP = 500_000

log = logging.getLogger(__name__)


@torch.inference_mode()
def model_loss(model: Gemma2ForCausalLM, documents: Sequence[Tensor]) -> float:
    """Give nats per token over whole documents, in sequences of at most 1,024 behind a BOS."""
    total, count = 0.0, 0
    for document in documents:
        for piece in torch.split(document, SEQUENCE_LENGTH - 1):
            fed = functional.pad(piece, (1, 0), value=BOS)[None, :-1]
            logits = model(input_ids=fed, use_cache=False).logits[0]
            total += functional.cross_entropy(logits, piece, reduction="sum").item()
            count += len(piece)
    return total / count


def unigram_probabilities(learned: Sequence[Tensor], vocabulary: int) -> Tensor:
    """Give each token's share of the text, half an occurrence added to all."""
    counts = torch.bincount(torch.cat(list(learned)), minlength=vocabulary).double() + 0.5
    return counts / counts.sum()


def bigram_loss(learned: Sequence[Tensor], held_out: Sequence[Tensor], unigram: Tensor) -> float:
    """Give nats per token of a bigram model, absolute discounting backed off to the unigram."""
    vocabulary = len(unigram)
    pairs = torch.cat([_bigrams(ids, vocabulary) for ids in learned])
    seen, counts = torch.unique(pairs, return_counts=True)
    firsts = seen // vocabulary
    totals = torch.zeros(vocabulary, dtype=torch.double).index_add(0, firsts, counts.double())
    kinds = torch.bincount(firsts, minlength=vocabulary).double()
    asked = torch.cat([_bigrams(ids, vocabulary) for ids in held_out])
    first, second = asked // vocabulary, asked % vocabulary
    places = torch.searchsorted(seen, asked).clamp(max=len(seen) - 1)
    found = torch.where(seen[places] == asked, counts[places].double() - DISCOUNT, 0.0)
    known = totals[first].clamp(min=1)
    left_over = torch.where(totals[first] > 0, DISCOUNT * kinds[first] / known, 1.0)
    return -(found / known + left_over * unigram[second]).log().mean().item()


def _bigrams(ids: Tensor, vocabulary: int) -> Tensor:
    return functional.pad(ids, (1, 0), value=BOS)[:-1] * vocabulary + ids


@torch.inference_mode()
def token_correlations(
    sae: JumpReLU, fitted: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor], vocabulary: int
) -> Tensor:
    """Give each feature's Pearson correlation with a table of its mean activation by token.

    Args:
        sae: The autoencoder.
        fitted: Token ids and activations that the table is made from.
        asked: Token ids and activations that it is tried on.
        vocabulary: Number of token ids.
    """
    sums = torch.zeros(vocabulary, len(sae.b_enc))
    blocks = zip(torch.split(fitted[0], 8_192), torch.split(fitted[1], 8_192), strict=True)
    for ids, rows in blocks:
        sums.index_add_(0, ids, sae.encode(rows))
    counts = torch.bincount(fitted[0], minlength=vocabulary)[:, None]
    overall = sums.sum(0) / len(fitted[0])
    table = (sums + SHRINKAGE * overall) / (counts + SHRINKAGE)
    truth, predicted = sae.encode(asked[1]), table[asked[0]]
    truth, predicted = truth - truth.mean(0), predicted - predicted.mean(0)
    return functional.cosine_similarity(truth, predicted, dim=0).masked_fill(
        (truth == 0).all(0), torch.nan
    )


def report(out: Path, folder: Path, learned: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
    """Measure the model in `folder` and the SAEs under `out`, and write `out/figures.json`."""
    model: Gemma2ForCausalLM = Gemma2ForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    unigram = unigram_probabilities(learned, model.config.vocab_size)
    held_out_ids = torch.cat(list(held_out))
    figures: dict[str, object] = {
        "parameters": model.num_parameters(),
        "learned_tokens": sum(map(len, learned)),
        "held_out_tokens": len(held_out_ids),
        "held_out_nats_per_token": {
            "unigram": -unigram[held_out_ids].log().mean().item(),
            "bigram": bigram_loss(learned, held_out, unigram),
            "model": model_loss(model, held_out),
        },
    }
    base = load_base_model(folder)
    fitted = first_tokens(learned, TOKENS_FOR_LOOKUP)
    fitted_ids, fitted_activations = torch.cat(fitted), collect_activations(base, fitted)
    activations = collect_activations(base, held_out)
    for site in TARGET_L0:
        path = next((out / "saes" / site).rglob("params.npz"))
        sae = load_sae(path)
        correlations = token_correlations(
            sae,
            (fitted_ids, fitted_activations[site]),
            (held_out_ids, activations[site]),
            len(unigram),
        )
        quartiles = correlations[correlations.isfinite()].quantile(torch.tensor([0.25, 0.5, 0.75]))
        figures[f"{site} layer {LAYER}"] = {
            "path": path.relative_to(out).as_posix(),
            "bytes": path.stat().st_size,
            "held_out": asdict(measure_fidelity(sae, activations[site])),
            "token_lookup_correlation_quartiles": quartiles.tolist(),
        }
    text = json.dumps(figures, indent=2)
    log.info("%s", text)
    (out / "figures.json").write_text(text + "\n")
