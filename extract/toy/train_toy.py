"""Train the toy: a tokenizer, a small Gemma 2 and its sparse autoencoders, from one seed.

    python -m scopenote.extract.toy.train_toy [--out DIR] [--stage tokenizer|model|saes|report]

Without `--stage` all four run in turn. What is traded for what: a million parameters and half an
hour on two cores buy a model that has plainly left bigrams behind, so that its features respond to
context; nothing here is meant to be a good language model.
"""

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer

from .measure_toy import report
from .standard_library import iterate_documents
from .train_saes import train_saes

SEED = 20261121
MODEL_FOLDER = "toy-gemma-2"
VOCABULARY = 4_096
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PAD, BOS = 0, 2
IGNORED = -100

HELD_OUT_SHARE = 0.05
TOKENS_PER_STEP = 4_096
TOKENS_PER_PASS = 1_024
"""A step is taken in passes whose logits stay in cache: a fifth faster than all at once."""
STEPS = 1_500
WARMUP_STEPS = 100
LEARNING_RATE = 3e-3
SEQUENCE_LENGTHS, LENGTH_SHARES = (256, 512, 1_024), (0.6, 0.25, 0.15)
"""Mostly short, because attention's cost grows with length; long often enough to be in range."""

STAGES = ("tokenizer", "model", "saes", "report")

log = logging.getLogger(__name__)


def is_held_out(document: str) -> bool:
    """Say whether neither model nor SAEs are trained on this document."""
    digest = hashlib.sha256(b"toy held out\0" + document.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def train_tokenizer(documents: Sequence[str]) -> Any:
    """Give a Gemma tokenizer of 4,096 entries: `▁` for a space, bytes for what it has not seen.

    Merges are learned inside words, runs of punctuation and runs of blanks, so that a token is one
    thing to a reader. At run time it is Gemma's own class, which needs no such cutting.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"▁?\p{L}+|\p{N}|▁?[^\s\p{L}\p{N}▁]+|▁+|\n+|\s"), behavior="isolated"
    )
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIALS, *BYTES],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁", "\n", "\t"],
        limit_alphabet=97,
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    settings: dict[str, Any] = {
        "vocab": state["vocab"],
        "merges": [tuple(pair) for pair in state["merges"]],
        "mask_token": None,  # Gemma's class would add one
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    return GemmaTokenizer(**settings)


def tokenize_documents(tokenizer: Any, documents: Sequence[str]) -> list[Tensor]:
    """Give each document's token ids without BOS."""
    encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    return [torch.tensor(ids, dtype=torch.long) for ids in encoded]


def toy_config() -> Gemma2Config:
    """Give Gemma 2's architecture, soft caps and all, at about a million parameters."""
    return Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=1_024,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=1,
        bos_token_id=BOS,
    )


def sample_batch(
    documents: Sequence[Tensor], starts: np.ndarray, rng: np.random.Generator
) -> Tensor:
    """Draw pieces of documents, each behind a BOS and padded on the right.

    A token is drawn with equal chance wherever it lies; a piece that would begin before its
    document begins with it, so that beginnings are well known. Causal attention keeps padding out
    of sight.
    """
    length = int(rng.choice(SEQUENCE_LENGTHS, p=LENGTH_SHARES))
    batch = torch.full((TOKENS_PER_STEP // length, length), PAD)
    batch[:, 0] = BOS
    for row, middle in zip(batch, rng.integers(starts[-1], size=len(batch)), strict=True):
        which = int(np.searchsorted(starts, middle, side="right")) - 1
        document = documents[which]
        last = max(0, len(document) - length + 1)
        first = min(max(0, int(middle - starts[which]) - length // 2), last)
        piece = document[first : first + length - 1]
        row[1 : 1 + len(piece)] = piece
    return batch


def next_token_losses(model: Gemma2ForCausalLM, batch: Tensor) -> Tensor:
    """Give the loss in nats at each predicted token of a right-padded batch, padding left out."""
    targets = batch[:, 1:].masked_fill(batch[:, 1:] == PAD, IGNORED).reshape(-1)
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].reshape(len(targets), -1)
    losses = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return losses[targets != IGNORED]


def learning_rate_at(step: int, steps: int) -> float:
    """Give warmup, then a cosine down to a fiftieth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_model(documents: Sequence[Tensor], steps: int) -> Gemma2ForCausalLM:
    """Train next-token prediction on random pieces of the documents."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = Gemma2ForCausalLM(toy_config())
    starts = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    gains = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    model.train()
    began, tokens, recent = time.monotonic(), 0, 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        optimizer.zero_grad()
        batch = sample_batch(documents, starts, rng)
        predicted, loss = int((batch[:, 1:] != PAD).sum()), 0.0
        for rows in torch.split(batch, TOKENS_PER_PASS // batch.shape[1]):
            share = next_token_losses(model, rows).sum() / predicted
            torch.autograd.backward(share)
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += predicted
        recent = loss if step == 0 else 0.95 * recent + 0.05 * loss
        if step % 50 == 0:
            seconds = time.monotonic() - began
            log.info("step %d loss %.3f, %.0f tokens/s", step, recent, tokens / seconds)
    return model


def run(out: Path, stages: Sequence[str], steps: int) -> None:
    """Run the stages in order; each reads what the one before wrote under `out`."""
    documents = list(iterate_documents())
    learned = [document for document in documents if not is_held_out(document)]
    held_out = [document for document in documents if is_held_out(document)]
    folder = out / MODEL_FOLDER
    if "tokenizer" in stages:
        train_tokenizer(learned).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenize_documents(tokenizer, learned)
    if "model" in stages:
        train_model(ids, steps).save_pretrained(folder)
    if "saes" in stages:
        in_order = tokenize_documents(tokenizer, documents)
        train_saes(folder, ids, in_order, out / "saes", SEED)
    if "report" in stages:
        report(out, folder, ids, tokenize_documents(tokenizer, held_out))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Train the toy model and its autoencoders.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: all, in order")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the model's training")
    given = parser.parse_args(arguments)
    run(given.out, given.stage or STAGES, given.steps)


if __name__ == "__main__":
    main()
