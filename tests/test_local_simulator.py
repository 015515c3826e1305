"""A model in this process that rates windows: as the slow way does, however they are batched."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
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
        for n, (before, here) in enumerate(pairwise(answer), start=1)
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


@pytest.mark.parametrize(
    "family", ["gemma2", *(pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES[1:])]
)
def test_ratings_are_those_of_the_slow_way(folders: dict[str, Path], family: str) -> None:
    rater = open_rater(str(folders[family]), "cpu", batch_size=3)
    for label, some in ((LABEL, slice(0, 2)), (OTHER, slice(2, 4))):
        rated = rater.rate(label, TEXTS)[some]
        for text, each in zip(TEXTS[some], rated, strict=True):
            require_alike(each, *slow_ratings(folders[family], label, text))


def test_neither_order_nor_batches_matter(gemma: LocalModel) -> None:
    alone = LocalRater(gemma, batch_size=1).rate(LABEL, TEXTS)
    assert len({each.values for each in alone if isinstance(each, Rated)}) == len(TEXTS)
    for batch_size in (2, 4, 16):
        rater = LocalRater(gemma, batch_size)
        require_same(rater.rate(LABEL, TEXTS), alone)
        require_same(rater.rate(LABEL, TEXTS[::-1]), alone[::-1])


def test_a_rating_depends_on_its_token_and_what_is_before_and_on_no_filler_from_it_on(
    gemma: LocalModel,
) -> None:
    rater = LocalRater(gemma)
    words = (" one", " two", " three", " four")
    (rated,) = rater.rate(LABEL, [WindowText((), words)])
    (other_end,) = rater.rate(LABEL, [WindowText((), (*words[:2], " other", " four"))])
    rater._filler_id = gemma.layout.tokenizer.convert_tokens_to_ids("!")
    (other_filler,) = rater.rate(LABEL, [WindowText((), words)])
    assert isinstance(rated, Rated)
    assert isinstance(other_end, Rated)
    assert isinstance(other_filler, Rated)
    assert other_end.values[:2] == pytest.approx(rated.values[:2], abs=1e-5)
    assert other_end.values[2] != pytest.approx(rated.values[2], abs=1e-3)
    assert other_filler.values[0] == pytest.approx(rated.values[0], abs=1e-5)
    assert other_filler.values[1] != pytest.approx(rated.values[1], abs=1e-3)


def test_what_windows_have_in_common_is_read_once_and_stays_as_it_was(gemma: LocalModel) -> None:
    rater = LocalRater(gemma, batch_size=2)
    with watching() as given:
        first = rater.rate(LABEL, TEXTS)
    (n_instructions, n_label), batches = [n for _, n in given[:2]], given[2:]
    assert [rows for rows, _ in given] == [1, 1, 2, 2, 1]
    assert n_instructions > 1000 > 100 > n_label
    assert all(n < 300 for _, n in batches)
    with watching() as given:
        rater.rate(OTHER, TEXTS[:1])
        require_same(rater.rate(LABEL, TEXTS), first)
    assert [rows for rows, _ in given] == [1, 1, 2, 2, 1]  # the other label, and its window


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_a_shared_cache_gives_each_row_what_a_cache_of_its_own_does(
    folders: dict[str, Path], family: str
) -> None:
    network, _ = load_slowly(folders[family])
    beginning, common = list(range(300, 330)), list(range(300, 340))
    rows = torch.tensor([[9, 8, 7], [6, 5, 4]])
    prefixes = PrefixCache(network, lambda leading: beginning)
    with torch.inference_mode():
        shared = prefixes.share((Message("system", ""),), common)
        for _ in range(2):
            logits = network(rows, past_key_values=shared, use_cache=True).logits
            for row, found in zip(rows, logits, strict=True):
                whole = network(torch.tensor([[*common, *row.tolist()]])).logits[0, -3:]
                torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)
        assert shared.get_seq_length() == len(common)


def test_threads_take_turns(gemma: LocalModel) -> None:
    labels = [LABEL, OTHER] * 4
    alone = {label: LocalRater(gemma).rate(label, TEXTS[:3]) for label in labels[:2]}
    rater = LocalRater(gemma)
    with ThreadPoolExecutor(4) as threads:
        for label, rated in zip(
            labels, threads.map(lambda each: rater.rate(each, TEXTS[:3]), labels), strict=True
        ):
            require_same(rated, alone[label])


def test_a_simulator_predicts_the_ratings_of_each_window(gemma: LocalModel) -> None:
    words = {1: " import", 2: " the", 3: "\n"}
    windows = make_stratum([[1, 2, 3], [2]], n_tokens=4, first_id=7).windows
    rater = LocalRater(gemma)
    simulator = LocalSimulator(rater, words.__getitem__, lambda name: [int(name) - 6])
    texts = [
        WindowText((" import",), (" import", " the", "\n")),
        WindowText((" the",), (" the",)),
    ]
    one, other = rater.rate(LABEL, texts)
    assert isinstance(one, Rated)
    assert isinstance(other, Rated)
    label = Label(FEATURE, LABEL, None, "highlighted", "1", (1, 2), model="m")
    simulated = simulator.simulate(label, windows)
    assert simulated.predicted[0] == pytest.approx([*one.values, 0], abs=1e-5)
    assert simulated.predicted[1] == pytest.approx([*other.values, 0, 0, 0], abs=1e-5)
    assert simulated.failures == {}
    assert simulated.captured_mass == pytest.approx({0: one.mass, 1: other.mass}, abs=1e-6)
    assert simulator.name == f"local/{gemma.name}"
    assert (simulator.full_scale, simulator.depends_on_order) == (9.0, False)


# --- what goes wrong --------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved(
    gemma: LocalModel, caplog: pytest.LogCaptureFixture
) -> None:
    alone = LocalRater(gemma, batch_size=1).rate(LABEL, TEXTS)
    rater = LocalRater(gemma, batch_size=5)
    with memory_for(rows=2), caplog.at_level(logging.WARNING, "scopenote"), watching() as given:
        require_same(rater.rate(LABEL, TEXTS), alone)
    assert [rows for rows, _ in given] == [1, 1, 2, 2, 1]
    assert "no memory for 5 windows at once, goes on with 2" in caplog.text


def test_a_window_that_does_not_fit_alone_has_failed_with_a_reason(gemma: LocalModel) -> None:
    long = WindowText((), (" a",) * 400)
    rater = LocalRater(gemma, batch_size=2)
    n = len(rater._shared_ids(LABEL))
    with memory_for(tokens=n):
        failed, rated = rater.rate(LABEL, [long, TEXTS[0]])
    assert failed == NO_MEMORY
    require_alike(rated, *slow_ratings(Path(gemma.name), LABEL, TEXTS[0]))
    # What was kept has gone for the memory it took, and comes again.
    (again,) = rater.rate(LABEL, [TEXTS[0]])
    require_same([again], [rated])


def test_a_window_longer_than_the_context_has_failed_with_a_reason(gemma: LocalModel) -> None:
    rater = LocalRater(gemma)
    prompt = rater._prompt(LABEL, TEXTS[2])
    assert not isinstance(prompt, str)
    short = LocalRater(replace(gemma, context_tokens=len(prompt.token_ids) - 1))
    just = LocalRater(replace(gemma, context_tokens=len(prompt.token_ids)))
    (failed,) = short.rate(LABEL, [TEXTS[2]])
    assert (
        failed == f"it has more than the {len(prompt.token_ids) - 1:,} tokens that the model takes"
    )
    require_same(just.rate(LABEL, [TEXTS[2]]), rater.rate(LABEL, [TEXTS[2]]))


def test_numbers_that_are_not_finite_fail_their_window_alone(gemma: LocalModel) -> None:
    rater = LocalRater(gemma, batch_size=5)
    alone = rater.rate(LABEL, TEXTS)
    with spoiling(gemma, gemma.layout.tokenizer.convert_tokens_to_ids("é")):
        rated = rater.rate(LABEL, TEXTS)
    assert rated[1] == NOT_FINITE
    require_same([rated[0], *rated[2:]], [alone[0], *alone[2:]])


def test_what_the_template_does_not_take_has_failed_with_a_reason(gemma: LocalModel) -> None:
    refusing = (
        "{% if 'forbidden' in messages[-1]['content'] %}{{ raise_exception('no') }}{% endif %}"
    )
    layout = ChatLayout.of(chat_tokenizer(refusing + WITHOUT_SYSTEM), "tiny")
    rater = LocalRater(replace(gemma, layout=layout))
    texts = [WindowText((" forbidden",), (" a",)), TEXTS[0]]
    failed, rated = rater.rate(LABEL, texts)
    assert failed == NOT_TAKEN
    require_same([rated], LocalRater(gemma).rate(LABEL, TEXTS[:1]))
    assert rater.rate("forbidden", texts) == [NOT_TAKEN] * 2


def test_a_tokenizer_without_a_token_for_each_digit_is_refused(gemma: LocalModel) -> None:
    pieces = [*SPECIALS, *(sign for sign in CHARACTERS if sign not in "78")]
    unknowing = GemmaTokenizer(
        vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], mask_token=None
    )
    joining = tiny_tokenizer()
    joining.add_tokens(["\t7", "\t9"])
    for tokenizer in (unknowing, joining):
        layout = ChatLayout.of(tokenizer, "tiny")
        with pytest.raises(ModelError, match="each rating as one token"):
            LocalRater(replace(gemma, layout=layout))


def test_a_model_that_cannot_be_loaded_is_named_by_its_setting() -> None:
    with pytest.raises(ModelError) as refused:
        open_rater("./no-such-model", "cpu", setting="[score.local] model")
    assert "The model that is to rate windows cannot be loaded." in str(refused.value)
    assert "[score.local] model = './no-such-model'" in str(refused.value)


def require_same(rated: Sequence[Rated | str], expected: Sequence[Rated | str]) -> None:
    for one, other in zip(rated, expected, strict=True):
        assert isinstance(other, Rated)
        assert other.mass is not None
        require_alike(one, other.values, other.mass)


@contextmanager
def spoiling(model: LocalModel, token: int) -> Iterator[None]:
    """What the network makes of a token is not a number within the block."""

    def spoil(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        spoilt = torch.full_like(output, float("nan"))
        return torch.where((args[0] == token)[..., None], spoilt, output)

    handle = model.network.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()
