"""Gold items are what they say, and tell an ideal judge from one that answers nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scopenote.evaluate.chat_simulator import ChatSimulator
from scopenote.evaluate.correlation import CONSTANT_PREDICTION, MIN_ACTIVE_TOKENS
from scopenote.evaluate.gold_items import RULES, GoldItem, cut, gold_items, gold_version
from scopenote.evaluate.judge_gold import MakeSimulator, drawn, judge_gold
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.simulators import Simulated, Simulator, TokenLookupSimulator
from scopenote.evaluate.sparse_simulator import SparseChatSimulator
from scopenote.label.chat import ChatRequest
from scopenote.label.token_lookup import fit_token_lookup
from scopenote.store.gold import find_change
from scopenote.store.records import Call, Label, Windows

from .made_up_calls import make_call
from .planted_feature import make_random_contexts

ITEMS = gold_items()
RULE_OF = {item.label: RULES[item.name] for item in ITEMS}


@dataclass
class RuleReader:
    """Predicts the rule that a label puts in words; misses and invents at random if told so."""

    token_text: Callable[[int], str]
    missed: float = 0.0
    invented: float = 0.0
    seed: int = 0
    fails_at: str = "no such word"
    name: str = "reader"
    depends_on_order: bool = True
    full_scale: float | None = 9.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        predicted = np.zeros(windows.token_ids.shape, np.float32)
        failures = {}
        for row, ids in enumerate(windows.token_ids):
            words = [self.token_text(number) for number in ids[ids >= 0]]
            if self.fails_at in words:
                failures[row] = "no answer"
            holds = np.array(RULE_OF[label.text or ""](words))
            kept = holds & (self.rng.random(len(words)) >= self.missed)
            predicted[row, : len(words)] = 9 * (
                kept | (self.rng.random(len(words)) < self.invented)
            )
        return Simulated(predicted, failures, dict.fromkeys(range(len(predicted)), 0.8))


def reader(**more: Any) -> MakeSimulator:
    return lambda token_text, prefix_of: RuleReader(token_text, **more)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_three_windows_have_the_property_and_three_have_not(item: GoldItem) -> None:
    assert [any(truth) for truth in item.truth] == [True] * 3 + [False] * 3
    assert sum(map(sum, item.truth)) >= MIN_ACTIVE_TOKENS
    assert all(20 <= len(window) <= 40 for window in item.windows)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("token_set", "Bread, breadth, butter", "1000 1"),
        ("after_another", "very, every very old", "0100 1"),
        ("quoted", 'so "go on" he "said', "00110001"),
        ("digit_run", "19 84 5 1", "0101 00"),
        ("rare_word", "a Quince, quinces", "010 0"),
        ("french", "C'est la vie, says", "1110 0"),
        ("sentence_start", "No. He left Bob? yes. A", "101000001"),
        ("negation", "not a knot, didn't", "1000 1"),
    ],
)
def test_a_rule_holds_where_its_words_say(name: str, text: str, where: str) -> None:
    assert RULES[name](cut(text)) == [sign == "1" for sign in where.replace(" ", "")]


def test_tokens_joined_are_the_text_and_no_label_is_used_twice() -> None:
    assert "".join(cut('She didn\'t say "no" in 1932, did she?')) == (
        'She didn\'t say "no" in 1932, did she?'
    )
    assert cut(" 19")[0] == " 1"
    assert len({item.label for item in ITEMS}) == len(ITEMS) == len(RULES)


def test_the_version_is_a_hash_of_what_is_asked() -> None:
    assert re.fullmatch("[0-9a-f]{16}", gold_version())


def test_an_ideal_judge_scores_one_by_true_labels_and_about_nothing_by_wrong_ones() -> None:
    scores = judge_gold(reader())
    assert [score.item for score in scores] == [item.name for item in ITEMS]
    for score in scores:
        assert score.value == pytest.approx(1.0)
        assert score.wrong_value is None or abs(score.wrong_value) < 0.15
        assert (score.wrong_value is None) == (score.wrong_reason == CONSTANT_PREDICTION)
        assert (score.n_windows, score.n_failed, score.silent_mean) == (12, 0, 0.0)
        assert score.captured_mass == pytest.approx(0.8)
    assert any(score.wrong_value is not None for score in scores)


def test_a_judge_that_answers_zeros_is_undefined_and_not_zero() -> None:
    for score in judge_gold(reader(missed=1.0)):
        assert (score.value, score.reason) == (None, CONSTANT_PREDICTION)
        assert (score.wrong_value, score.wrong_reason) == (None, CONSTANT_PREDICTION)


def test_a_judge_that_answers_anything_scores_about_nothing() -> None:
    scores = judge_gold(reader(missed=0.9, invented=0.1))
    assert abs(np.mean([score.value for score in scores if score.value is not None])) < 0.2
    assert all(0.02 < (score.silent_mean or 0) < 0.25 for score in scores)


def test_windows_that_failed_are_left_out_and_counted_by_reason() -> None:
    scores = {score.item: score for score in judge_gold(reader(fails_at=" quilt"))}
    assert scores["rare_word"].value == pytest.approx(1.0)
    assert (scores["rare_word"].n_failed, scores["rare_word"].failures) == (2, {"no answer": 2})
    everything = judge_gold(reader(fails_at="."))
    assert {score.reason for score in everything if score.n_failed == 12} == {
        "nothing was simulated: no answer"
    }


def test_a_simulator_that_reads_no_words_has_failed() -> None:
    lookup = fit_token_lookup(make_random_contexts(1, "explain"))
    scores = judge_gold(lambda token_text, prefix_of: TokenLookupSimulator(lookup))
    assert all(score.value is None and score.n_failed == 12 for score in scores)


def values_of(seed: int, **more: float) -> dict[str, float | None]:
    """The scores of a judge with this seed."""
    return {score.item: score.value for score in judge_gold(reader(seed=seed, **more))}


def test_a_worse_judge_has_changed_and_one_with_the_same_noise_has_not() -> None:
    noise = {"missed": 0.15, "invented": 0.01}
    worse = {"missed": 0.5, "invented": 0.05}
    earlier = [values_of(seed, **noise) for seed in range(3)]
    found = {
        name: [find_change(values_of(seed, **how), earlier) for seed in range(100, 100 + n)]
        for name, how, n in (("same", noise, 200), ("worse", worse, 50))
    }
    n_found = {name: sum(bool(each.is_beyond_chance) for each in found[name]) for name in found}
    assert n_found["same"] <= 6  # one in a hundred is expected
    assert n_found["worse"] >= 45
    assert all((each.mean or 0) < 0 for each in found["worse"])


def rate_lines(request: ChatRequest) -> str:
    """A model that reads by rule, one window a call."""
    text = request.messages[1].content
    listed = text.split("⟦tokens⟧\n")[1].split("⟦end of tokens")[0].splitlines()
    holds = RULE_OF[label_in(text)]([line.split("\t", 1)[1] for line in listed])
    return "".join(
        f"{number}\t{9 * is_active}\n" for number, is_active in enumerate(holds, start=1)
    )


def rate_windows(request: ChatRequest) -> str:
    """A model that reads by rule, several windows a call."""
    text = request.messages[1].content
    lines = []
    for number, part in enumerate(re.split(r"⟦window \d+⟧\n", text)[1:], start=1):
        listed = part.split("⟦")[0].splitlines()
        words = [re.sub(r"^\d+\+?", "", line) for line in listed]
        holds = RULE_OF[label_in(text)](words)
        rated = " ".join(f"{at}=9" for at, is_active in enumerate(holds, start=1) if is_active)
        lines.append(f"{number}\t{rated or '-'}")
    return "\n".join(lines)


def label_in(text: str) -> str:
    return text.split("⟦label⟧\n")[1].split("\n")[0]


def asking(
    make: Callable[..., Simulator], answer: Callable[[ChatRequest], str], asked: list[ChatRequest]
) -> MakeSimulator:
    async def ask(request: ChatRequest, n_static: int) -> Call:
        asked.append(request)
        reply = {"text": answer(request), "finish_reason": "stop", "refusal": None, "model": "m"}
        return make_call(0, request_hash=request.request_hash, reply=reply)

    def run(rating: Any) -> list[Rated | str]:
        return asyncio.run(rating)

    def made(token_text: Callable[[int], str], prefix_of: Callable[[int], Sequence[int]]) -> Any:
        return make("m", drawn(ask, 3), run, token_text, prefix_of)

    return made


@pytest.mark.parametrize(
    ("make", "answer", "n_calls"),
    [(ChatSimulator, rate_lines, 96), (SparseChatSimulator, rate_windows, 16)],
)
def test_models_are_judged_by_what_they_are_shown_and_asked_anew_in_each_draw(
    make: Callable[..., Simulator], answer: Callable[[ChatRequest], str], n_calls: int
) -> None:
    asked: list[ChatRequest] = []
    scores = judge_gold(asking(make, answer, asked))
    assert [score.value for score in scores] == [pytest.approx(1.0)] * len(ITEMS)
    assert len(asked) == n_calls
    assert {request.draw for request in asked} == {3}
