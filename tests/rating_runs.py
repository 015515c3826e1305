"""Runs whose labels a scripted model rates: it writes labels, good and bad, and goes by them."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from .asking_runs import asking_configuration
from .fake_openai import Answer, Asked, FakeOpenAI, reply

N_FEATURES, N_DRAWS = 6, 3
ACTIVE, SILENT = 10, 15
SIMULATOR = "chat/gpt-4o-mini"
NONSENSE = "zebraviolins"


def runs_that_rate(collected: Path, folder: Path, candidates: int = N_DRAWS, **always: Any) -> Any:
    """Makes a run of one's own that has this server write labels and rate them."""

    def make(fake: FakeOpenAI, simulators: tuple[str, ...] = ("chat",), **more: Any) -> Any:
        run, config = folder / "run", folder / "asking.toml"
        if not run.exists():
            shutil.copytree(collected, run)
        explain = asking_configuration(collected.parent, fake.base_url, N_FEATURES)
        chat = {
            "model": "gpt-4o-mini",
            "base_url": fake.base_url,
            "active_windows": ACTIVE,
            "silent_windows": SILENT,
            **always,
            **more,
        }
        lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in chat.items())
        config.write_text(
            explain.replace("[explain]", f"[explain]\ncandidates = {candidates}")
            + f"\n[score]\nsimulators = {json.dumps(['token_lookup', *simulators])}\n"
            + f"[score.chat]\n{lines}\n"
        )
        return run, config

    return make


def write_and_rate(asked: Asked) -> Answer:
    """Of three labels of a feature one names its strongest token; ratings go by the label."""
    text = asked.text
    cost = (len(text) // 4, 0)
    if "⟦label⟧\n" in text:
        label = text.split("⟦label⟧\n")[1].split("\n")[0]
        listed = text.split("⟦tokens⟧\n")[1].split("⟦end")[0].splitlines()
        words = [line.split("\t", 1) for line in listed]
        digits = [9 if word.strip() in label.split() else 0 for _, word in words]
        return rated([number for number, _ in words], digits, *cost)
    strongest = max(
        re.findall(r"^(.*)\t(\d+)$", text, re.MULTILINE), key=lambda found: int(found[1])
    )[0]
    is_good = asked.times_before == int(asked.conversation, 16) % N_DRAWS
    content = {
        "explanation": "Made up.",
        "near_miss": "Nothing.",
        "label": f"only {strongest.strip()}" if is_good else NONSENSE,
    }
    written = json.dumps(content)
    return reply(written, *cost, len(written) // 4)


def rated(numbers: list[str], digits: list[int], prompt: int, cached: int) -> Answer:
    """Lines with log probabilities: one in ten for the digit beside the one that is written."""
    tokens = []
    for number, digit in zip(numbers, digits, strict=True):
        beside = digit - 1 if digit else 1
        tokens += [_token(f"{number}\t"), _token(str(digit), 0.9, str(beside)), _token("\n")]
    text = "".join(token["token"] for token in tokens)
    return reply(text, prompt, cached, len(tokens), logprobs={"content": tokens})


def _token(text: str, probability: float = 1.0, beside: str | None = None) -> dict[str, Any]:
    top = [{"token": text, "logprob": math.log(probability), "bytes": None}]
    if beside is not None:
        top.append({"token": beside, "logprob": math.log(1 - probability), "bytes": None})
    return {**top[0], "top_logprobs": top}
