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
    """Of three labels of a feature one names its strongest token; all else goes by the label."""
    text = asked.text
    system = asked.body["messages"][0]["content"]
    cost = (sum(len(each["content"]) for each in asked.body["messages"]) // 4, 0)
    if system.startswith("You predict"):
        label = _between(text, "⟦label⟧\n", "\n⟦end")
        if "⟦window 1⟧" in text:
            return _named(text, label, cost)
        listed = text.split("⟦tokens⟧\n")[1].split("⟦end")[0].splitlines()
        words = [line.split("\t", 1) for line in listed]
        digits = [9 if word.strip() in label.split() else 0 for _, word in words]
        return rated([number for number, _ in words], digits, *cost)
    if system.startswith("You say which of several"):
        marked = re.findall("⟪(.*?)⟫", text.split("⟦window 1⟧")[1], re.DOTALL)
        labels = re.findall(r"⟦label (\d+)⟧\n(.*)", text)
        fitting = [int(number) for number, label in labels if _names(label, marked)]
        return rated(["1"], [min(fitting, default=1)], *cost)
    if system.startswith("You say"):
        label = _between(text, "⟦label⟧\n", "\n⟦end")
        windows = re.findall(r"⟦window (\d+)⟧\n(.*?)(?=\n⟦)", text, re.DOTALL)
        is_fuzzing = "right words" in system
        digits = [
            int(_names(label, re.findall("⟪(.*?)⟫", shown, re.DOTALL) if is_fuzzing else [shown]))
            for _, shown in windows
        ]
        return rated([number for number, _ in windows], digits, *cost)
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


def _between(text: str, begin: str, end: str) -> str:
    return text.split(begin, 1)[1].split(end, 1)[0]


def _names(label: str, texts: list[str]) -> bool:
    """Whether the label has a word that is in one of these texts."""
    return any(word in text for text in texts for word in label.split()[1:])


def _named(text: str, label: str, cost: tuple[int, int]) -> Answer:
    """The tokens of each window that the label has, as `chat_sparse` wants them."""
    lines = []
    for number, listed in re.findall(r"⟦window (\d+)⟧\n(.*?)\n(?=⟦)", text, re.DOTALL):
        tokens = re.findall(r"^(\d+)[ +](.*)$", listed, re.MULTILINE)
        active = [place for place, token in tokens if token.strip() in label.split()]
        lines.append(f"{number}\t" + (" ".join(f"{place}=9" for place in active) or "-"))
    written = "\n".join(lines)
    return reply(written, *cost, len(written) // 2)


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


def says_gold_rule(text: str) -> bool:
    """Whether a question about windows is one about gold items, under their own label."""
    from scopenote.evaluate.gold_items import gold_items

    label = text.split("⟦label⟧\n")[1].split("\n⟦end")[0]
    return label in {item.label for item in gold_items()}


def by_gold_rule(asked: Asked) -> Answer:
    """What a judge without fault answers to a gold question."""
    from scopenote.evaluate.gold_items import gold_items

    label = asked.text.split("⟦label⟧\n")[1].split("\n⟦end")[0]
    listed = asked.text.split("⟦tokens⟧\n")[1].split("⟦end")[0].splitlines()
    shown = [line.split("\t", 1)[1].strip() for line in listed]
    digits = [0] * len(shown)
    for item in gold_items():
        for tokens, truth in zip(item.windows, item.truth, strict=True):
            if item.label == label and [token.strip() for token in tokens] == shown:
                digits = [9 if value else 0 for value in truth]
    return rated([str(n + 1) for n in range(len(shown))], digits, 100, 0)
