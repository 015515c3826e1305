"""A model in this process that rates windows: as the slow way does, however they are batched."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scopenote.evaluate.local_simulator import (
    NO_MEMORY,
    NOT_TAKEN,
    LocalRater,
    LocalSimulator,
    open_rater,
)
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.teacher_forced import (
    NOT_FINITE,
    WindowText,
    filled_answer,
    slot_messages,
)
from scopenote.label.chat import ChatRequest, Message
from scopenote.label.chat_layout import ChatLayout
from scopenote.label.local_model import LocalModel, load_local_model
from scopenote.label.prefix_cache import PrefixCache
from scopenote.store.errors import ModelError
from scopenote.store.records import Label
from transformers import GemmaTokenizer

from .planted_feature import FEATURE, make_stratum
from .tiny_chat import (
    FAMILIES,
    WITHOUT_SYSTEM,
    chat_tokenizer,
    load_slowly,
    memory_for,
    one_thread,
    save_chat_model,
    shown,
    watching,
)
from .tiny_gemma import CHARACTERS, SPECIALS, tiny_tokenizer

# The tiny tokenizer makes a token of nearly every character, of the instructions too.
ROOM = 8192
LABEL, OTHER = "the word import", "a number, however it is written"
TEXTS = [
    WindowText((), (" import", "s", " the", "\n", " thing")),
    WindowText((" then", "?", "\n"), ("?", "9", "\t", "<start_of_turn>", " é", " 日本", "\x1b")),
    WindowText((" from", " the", " end") * 6, (" in", "ing")),
    WindowText((".",), ("\n", "\n", " er", " that", "⟦", " er", "1", "\t?")),
    WindowText((), (" a",)),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("raters")
    return {family: _save(here / family, family) for family in FAMILIES}


def _save(folder: Path, family: str) -> Path:
    save_chat_model(folder, family)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": ROOM}))
    return folder


@pytest.fixture(scope="module")
def gemma(folders: dict[str, Path]) -> LocalModel:
    return load_local_model(str(folders["gemma2"]), "cpu")


@cache
def slow_ratings(folder: Path, label: str, text: WindowText) -> tuple[tuple[float, ...], float]:
    """The whole text in one string, alone, without a cache; the softmax over the vocabulary."""
    network, tokenizer = load_slowly(folder)
    request = ChatRequest(slot_messages(label, text.before), "tiny", 0.0, 1)
    answer = tokenizer(filled_answer(text.tokens), add_special_tokens=False)["input_ids"]
    ids = tokenizer(shown(tokenizer, request), add_special_tokens=False)["input_ids"]
    tab, filler, newline = (tokenizer.encode(s, add_special_tokens=False)[0] for s in "\t?\n")
    slots = [
        len(ids) + n - 1
        for n, (before, here) in enumerate(zip(answer, answer[1:], strict=False), start=1)
        if (before, here) == (tab, filler) and answer[n + 1 : n + 2] in ([], [newline])
    ]
    assert len(slots) == len(text.tokens)
    with torch.inference_mode():
        shares = network(torch.tensor([ids + answer])).logits[0, slots].double().softmax(-1)
    digits = shares[:, [tokenizer.convert_tokens_to_ids(str(n)) for n in range(10)]]
    values = (digits @ torch.arange(10.0).double()) / digits.sum(-1)
    return tuple(values.tolist()), digits.sum(-1).mean().item()


def require_alike(rated: Rated | str, values: Sequence[float], mass: float) -> None:
    assert isinstance(rated, Rated)
    assert rated.values == pytest.approx(values, abs=1e-5)
    assert rated.mass == pytest.approx(mass, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_ratings_are_those_of_the_slow_way(folders: dict[str, Path], family: str) -> None:
    rater = open_rater(str(folders[family]), "cpu", batch_size=3)
    for label in (LABEL, OTHER):
        for text, rated in zip(TEXTS, rater.rate(label, TEXTS), strict=True):
            require_alike(rated, *slow_ratings(folders[family], label, text))
