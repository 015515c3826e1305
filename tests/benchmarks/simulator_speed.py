"""How many windows a second the local simulator rates, beside one window at a time read whole.

The slow way is the obvious one: for each window the whole text, instructions first, through the
model alone, without a cache, logits at every token. Both make the same token ids of windows of 64
tokens, of this Python's own library, under one label, and both run in turn, on a small random Gemma
2 of the proportions of Gemma 2 2B (head, feed-forward and attention to each other). The ratings are
compared as well. The slow way is given fewer windows: it keeps nothing between them.

    python tests/benchmarks/simulator_speed.py [--windows N] [--rounds N] [--batch-size N]
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
from scopenote.evaluate.local_simulator import NOT_TAKEN, LocalRater
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.teacher_forced import WindowText, read_slots
from scopenote.label.chat_layout import ChatLayout
from scopenote.label.local_model import LocalModel
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

TOY = Path(__file__).parents[2] / "extract" / "toy" / "toy-gemma-2"
LABEL = "the name of a parameter where its meaning is described"
WINDOW_TOKENS = 64
AT_LEAST = 3.0


def small_model() -> LocalModel:
    """A random Gemma 2 whose sliding layers see less than a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        query_pre_attn_scalar=128,
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
    parser.add_argument("--windows", type=int, default=60, help="of the label")
    parser.add_argument("--slow-windows", type=int, default=12, help="of them read the slow way")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=None)
    asked = parser.parse_args()
    model = small_model()
    texts = library_windows(model.layout.tokenizer, asked.windows)
    few = texts[:: len(texts) // asked.slow_windows]
    slow_seconds, fast_seconds = [], []
    apart = 0.0
    for _ in range(asked.rounds):
        rater = LocalRater(model, asked.batch_size)  # nothing kept of an earlier round
        model.network.set_attn_implementation("eager")
        began = time.perf_counter()
        slow = rate_slowly(model, rater, few)
        slow_seconds.append((time.perf_counter() - began) / len(few))
        model.network.set_attn_implementation("scopenote_capped")
        began = time.perf_counter()
        fast = rater.rate(LABEL, texts)
        fast_seconds.append((time.perf_counter() - began) / len(texts))
        for one, other in zip(slow, fast[:: len(texts) // asked.slow_windows], strict=True):
            assert isinstance(one, Rated), one
            assert isinstance(other, Rated), other
            apart = max(apart, float(np.abs(np.subtract(one.values, other.values)).max()))
    prompts = [rater._prompt(LABEL, text) for text in texts]
    n_tokens = statistics.median(len(each.token_ids) for each in prompts if each != NOT_TAKEN)
    ratios = sorted(a / b for a, b in zip(slow_seconds, fast_seconds, strict=True))
    ratio = statistics.median(ratios)
    sys.stdout.write(
        f"{n_tokens:,.0f} tokens a window, {len(rater._shared_ids(LABEL)):,} of them shared; "
        f"{torch.get_num_threads()} threads\n"
        f"one at a time, read whole: {1 / statistics.median(slow_seconds):.2f} windows/s\n"
        f"local simulator:           {1 / statistics.median(fast_seconds):.2f} windows/s\n"
        f"{ratio:.1f} times as fast, {ratios[0]:.1f} to {ratios[-1]:.1f} in {len(ratios)} rounds "
        f"(at least {AT_LEAST:g} asked); ratings differ by at most {apart:.1g}\n"
    )
    return 0 if ratio >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
