"""What prompts have in common, computed once: as if each were read from its beginning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scopenote.label.chat import Message
from scopenote.label.prefix_cache import PrefixCache

from .tiny_chat import load_slowly, one_thread, save_chat_model, watching

BEGINNING = [2, *(300 + n * 7 % 40 for n in range(30))]
LEADING = (Message("system", "Be brief."),)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=["gemma2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("shared") / request.param, request.param)


@pytest.mark.parametrize("n_alike", [0, 1, 14, 20, len(BEGINNING)])
@pytest.mark.parametrize("n_more", [0, 1, 25])
def test_a_prompt_is_read_on_from_where_it_differs(folder: Path, n_alike: int, n_more: int) -> None:
    network, _ = load_slowly(folder)
    prompt = [*BEGINNING[:n_alike], *(260 + n for n in range(n_more))] or [9]
    with torch.inference_mode():
        whole = network(torch.tensor([prompt])).logits[0, -1]
        prefixes = PrefixCache(network, lambda leading: BEGINNING)
        for is_new in (True, False):
            begun = prefixes.begin(LEADING, prompt)
            assert begun.is_new is is_new
            assert begun.n_tokens == min(n_alike, len(prompt) - 1)
            rest = torch.tensor([prompt[begun.n_tokens :]])
            logits = network(rest, past_key_values=begun.cache).logits[0, -1]
            torch.testing.assert_close(logits, whole, atol=1e-4, rtol=0)


def test_what_is_kept_is_computed_once_and_until_it_is_forgotten(folder: Path) -> None:
    network, _ = load_slowly(folder)
    prefixes = PrefixCache(network, lambda leading: BEGINNING, n_kept=1)
    prompt = [*BEGINNING, 9]
    with torch.inference_mode(), watching() as given:
        for _ in range(3):
            prefixes.begin(LEADING, prompt)
        assert given == [(1, len(BEGINNING))]
        prefixes.begin((), prompt)
        assert prefixes.begin(LEADING, prompt).is_new
        prefixes.clear()
        assert prefixes.begin(LEADING, prompt).is_new
    assert len(given) == 4
