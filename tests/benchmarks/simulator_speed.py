"""How many windows a second the local simulator rates, beside one window at a time read whole.

The slow way is the obvious one: for each window the whole text, instructions first, through the
model alone, without a cache, logits at every token. Both make the same token ids and rate 60
windows of 64 tokens, of this Python's own library, under one label; both run in turn, on a small
random Gemma 2 with the toy's tokenizer, and the ratings are compared. Its vocabulary is small: with
Gemma's own of 256,000 the slow way's logits alone would cost it many times more.

    python tests/benchmarks/simulator_speed.py [--windows N] [--rounds N] [--batch-size N] [--hidden N] [--layers N] [--vocabulary N]
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scopenote.evaluate.local_simulator import LocalRater
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.teacher_forced import WindowText, read_slots
from scopenote.label.chat_layout import ChatLayout
from scopenote.label.local_model import LocalModel
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

TOY = Path(__file__).parents[2] / "extract" / "toy" / "toy-gemma-2"
LABEL = "the name of a parameter where its meaning is described"
WINDOW_TOKENS = 64
AT_LEAST = 3.0


def small_model(hidden: int, layers: int, vocabulary: int | None) -> LocalModel:
    """A random Gemma 2 whose sliding layers see less than a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=max(1, hidden // 64),
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=512,
        max_position_embeddings=8192,
        attn_implementation="eager",
    )
    network = Gemma2ForCausalLM(config).eval()
    layout = ChatLayout.of(tokenizer, "small-gemma-2")
    return LocalModel("small-gemma-2", network, layout, frozenset(), 8192)


def library_windows(tokenizer: Any, n: int) -> list[WindowText]:
    """Windows of this Python's library, each with as many tokens before it."""
    text = "".join(inspect.getsource(module) for module in (argparse, textwrap, statistics, json))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = [tokenizer.decode([each]) for each in ids[: 2 * WINDOW_TOKENS * n]]
    blocks = [tuple(texts[at : at + WINDOW_TOKENS]) for at in range(0, len(texts), WINDOW_TOKENS)]
    return [WindowText(*pair) for pair in zip(blocks[::2], blocks[1::2], strict=True)]


def rate_slowly(model: LocalModel, rater: LocalRater, texts: list[WindowText]) -> list[Rated | str]:
    """One window at a time, read from its beginning."""
    digits = rater._digit_ids
    rated: list[Rated | str] = []
    with torch.inference_mode():
        for text in texts:
            prompt = rater._prompt(LABEL, text)
            assert not isinstance(prompt, str), prompt
            logits = model.network(torch.tensor([prompt.token_ids])).logits[0]
            logprobs = logits.log_softmax(-1)[prompt.slots][:, digits]
            rated.append(read_slots(logprobs.double().numpy()))
    return rated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=None)
    asked = parser.parse_args()
    model = small_model(asked.hidden, asked.layers, asked.vocabulary)
    texts = library_windows(model.layout.tokenizer, asked.windows)
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(asked.rounds):
        rater = LocalRater(model, asked.batch_size)  # nothing kept of an earlier round
        began = time.perf_counter()
        slow = rate_slowly(model, rater, texts)
        seconds["slow"].append(time.perf_counter() - began)
        began = time.perf_counter()
        fast = rater.rate(LABEL, texts)
        seconds["fast"].append(time.perf_counter() - began)
    apart = max(
        float(np.abs(np.subtract(one.values, other.values)).max())
        for one, other in zip(slow, fast, strict=True)
        if isinstance(one, Rated) and isinstance(other, Rated)
    )
    prompt = rater._prompt(LABEL, texts[0])
    shared = len(rater._shared_ids(LABEL))
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    per_second = {name: asked.windows / statistics.median(each) for name, each in seconds.items()}
    print(
        f"{len(getattr(prompt, 'token_ids', '')):,} tokens a window, {shared:,} of them shared; "
        f"{torch.get_num_threads()} threads\n"
        f"one at a time, read whole: {per_second['slow']:.2f} windows/s\n"
        f"batched, with the cache:   {per_second['fast']:.2f} windows/s\n"
        f"{ratio:.1f} times as fast (at least {AT_LEAST:g} asked); ratings differ by {apart:.1g}"
    )
    return 0 if ratio >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
