"""Shades of tokens: what they stand for, that nothing is lost, and that letters stay legible."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.flows.dashboard.token_shades import (
    LEVELS,
    PREFIX_TOKENS,
    level,
    shade_contexts,
)
from scopenote.store.feature_contexts import ShownContext
from scopenote.store.shown_simulations import ShownSimulation

STATIC = Path(__file__).parents[1] / "flows" / "dashboard" / "static"
TOKENS = (" the", "\n", "<0xE6>", "<0x97>", "<0xA5>", " end")
VALUES = (0.0, 0.2, 0.0, 7.0, 1.0, 10.0)


def context(**changes: Any) -> ShownContext:
    fields: dict[str, Any] = {
        "kind": "sample",
        "rank": 1,
        "split": "score",
        "window_id": 3,
        "doc_id": "d",
        "start": 0,
        "peak": 10.0,
        "weight": 2.5,
        "prefix": (),
        "tokens": TOKENS,
        "activations": VALUES,
    }
    return ShownContext(**{**fields, **changes})


def simulation(predicted: dict[int, tuple[float, ...]], by: str = "chat/m") -> ShownSimulation:
    return ShownSimulation("l", by, predicted, {4: "no ratings"})


def only(*contexts: ShownContext, **more: Any) -> Any:
    (interval,) = shade_contexts(contexts or (context(),), 10.0, **more)
    return interval.contexts[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (-3, 0), (0.4, 0), (0.6, 1), (5, 5), (9.4, 9), (10, 10), (99, 10), (float("nan"), 0)],
)
def test_a_level_is_the_nearest_tenth_of_the_full_scale(value: float, expected: int) -> None:
    assert level(value, 10.0) == expected
    assert level(value, 0.0) == 0


def test_the_faintest_activation_has_a_shade() -> None:
    faint = next(each for each in only().stretches if each.text == "\n")
    assert (faint.level, faint.classes) == (1, "k a1")
    assert faint.title == "“\n” true 0.20"


def test_bytes_of_one_character_are_joined_for_both_kinds_of_activation() -> None:
    shaded = only(simulation=simulation({3: (0.0, 0.0, 9.0, 0.0, 1.0, 4.5)}))
    joined = next(each for each in shaded.stretches if each.text == "日")
    assert (joined.level, joined.simulated, joined.classes) == (7, 10, "k a7 s10")
    assert joined.title == "“日” true 7.00, simulated 9.00 of 9"
    assert shaded.stretches[-1].simulated == 5


def test_the_token_lookup_predicts_in_the_units_of_the_activation() -> None:
    predicted = {3: (5.0, 0.0, 0.0, 0.0, 0.0, 10.0)}
    shaded = only(simulation=simulation(predicted, "token_lookup"))
    assert [each.simulated for each in shaded.stretches] == [5, 0, 0, 10]
    assert shaded.stretches[0].title == "“ the” true 0.00, simulated 5.00"


def test_what_is_off_and_thought_to_be_off_is_plain_text() -> None:
    plain = only(context(tokens=("a", "b", "c"), activations=(0.0, 0.0, 0.0)))
    assert [(each.text, each.title) for each in plain.stretches] == [("abc", "")]


def test_predictions_for_other_tokens_are_not_laid_over_these() -> None:
    shaded = only(simulation=simulation({3: (9.0, 9.0)}))
    assert not shaded.is_simulated
    assert not any(each.simulated for each in shaded.stretches)


def test_a_window_that_could_not_be_simulated_says_why() -> None:
    shaded = only(context(window_id=4), simulation=simulation({}))
    assert (shaded.is_simulated, shaded.failure) == (False, "no ratings")


@given(
    st.lists(
        st.tuples(
            st.text(max_size=3), st.floats(0, 10) | st.just(0.0), st.floats(0, 9) | st.just(0.0)
        ),
        max_size=20,
    )
)
def test_stretches_spell_the_window(tokens: list[tuple[str, float, float]]) -> None:
    texts = tuple(text for text, _, _ in tokens)
    shaded = only(
        context(tokens=texts, activations=tuple(value for _, value, _ in tokens)),
        simulation=simulation({3: tuple(value for *_, value in tokens)}),
    )
    assert "".join(each.text for each in shaded.stretches) == "".join(texts)
    n_active = sum(value > 0 for _, value, _ in tokens)
    assert sum(each.level > 0 for each in shaded.stretches) == n_active


def test_contexts_stand_in_quarters_of_the_peak_the_strongest_first() -> None:
    contexts = [
        context(peak=peak, rank=n, weight=1.5)
        for n, peak in enumerate((2.4, 10.0, 5.0, 7.6, 2.6, 4.9))
    ]
    found = [
        (each.low, each.high, [one.context.peak for one in each.contexts], each.n_windows)
        for each in shade_contexts(contexts, 10.0)
    ]
    assert found == [
        (0.75, 1.0, [10.0, 7.6], 3.0),
        (0.5, 0.75, [5.0], 1.5),
        (0.25, 0.5, [4.9, 2.6], 3.0),
        (0.0, 0.25, [2.4], 1.5),
    ]


def test_top_windows_stand_for_nothing_but_themselves() -> None:
    (interval,) = shade_contexts([context(kind="top", weight=None)], 10.0)
    assert interval.n_windows is None


def test_of_a_long_prefix_the_end_is_shown() -> None:
    prefix = tuple(f"{n} " for n in range(40))
    shaded = only(context(prefix=prefix, start=40))
    assert shaded.before == "".join(prefix[-PREFIX_TOKENS:])
    assert shaded.is_cut
    assert not only(context(prefix=("a",), start=1)).is_cut


def variables() -> tuple[dict[str, str], dict[str, str]]:
    """The colours by name, on light and on dark ground."""
    light: dict[str, str] = {}
    dark: dict[str, str] = {}
    for file in ("style.css", "feature.css"):
        text = (STATIC / file).read_text()
        for number, block in enumerate(re.findall(r":root \{(.*?)\}", text, re.DOTALL)):
            found = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block))
            (light if number == 0 else dark).update(found)
    return light, {**light, **dark}


def contrast(one: str, other: str) -> float:
    """By WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("kind", ["a", "s"])
def test_letters_are_legible_on_every_shade(kind: str, scheme: int) -> None:
    colours = variables()[scheme]
    style = (STATIC / "feature.css").read_text()
    for number in range(1, LEVELS + 1):
        rule = re.search(
            rf"\.k\.{kind}{number} {{ background-color: var\(--({kind}{number})\); "
            r"color: var\(--([a-z-]+)\)",
            style,
        )
        assert rule is not None
        assert contrast(colours[rule[1]], colours[rule[2]]) >= 4.5, (rule[1], scheme)


def test_stronger_shades_stand_out_more_from_the_ground() -> None:
    for colours in variables():
        for kind in "as":
            steps = [contrast(colours[f"{kind}{n}"], colours["ground"]) for n in range(1, 11)]
            assert steps == sorted(steps)
