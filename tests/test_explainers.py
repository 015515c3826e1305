"""Labels that the token lookup writes, and when it writes none."""

from __future__ import annotations

import numpy as np
import pytest
from scopenote.label.explainers import (
    MAX_TOKENS,
    NEVER_ACTIVE,
    NO_TOKEN_STANDS_OUT,
    TokenLookupExplainer,
    make_visible,
    name_strongest,
)
from scopenote.label.token_lookup import TokenLookup
from scopenote.store.records import Label

from .planted_feature import FEATURE, make_contexts, make_stratum

WORDS = {1: "▁import", 2: " from", 3: "return", 4: "\n", 5: "import", 6: "▁the", 7: "\t"}

SILENT = make_stratum([[6, 3, 6, 6]] * 30, population=300, first_id=500)


def explain(texts: list[list[int]], activations: list[list[float]]) -> Label:
    active = make_stratum(texts, activations, first_id=10)
    return TokenLookupExplainer().explain(make_contexts(active, SILENT), WORDS.__getitem__)


def lookup_of(means: dict[int, float], global_mean: float = 0.1) -> TokenLookup:
    token_ids = np.array(sorted(means), np.int32)
    values = np.array([means[i] for i in token_ids.tolist()], np.float32)
    return TokenLookup(token_ids, values, np.ones(len(token_ids), np.int64), global_mean)


def test_a_label_lists_the_strongest_tokens() -> None:
    label = explain([[1, 6], [1, 2], [2, 1]], [[8, 0], [8, 4], [4, 8]])
    assert label.text == "“import”, “from”"
    assert label.status == "done"
    assert (label.explainer, label.model, label.feature_id) == ("token_lookup", None, FEATURE)


def test_the_explanation_gives_the_means_and_what_they_were_looked_up_in() -> None:
    label = explain([[1, 6], [1, 2], [2, 1]], [[8, 0], [8, 4], [4, 8]])
    assert "“import” (4.8" in label.explanation
    assert "3 windows in which the feature fires and 30 in which it does not" in label.explanation


def test_the_windows_behind_a_label_are_the_feature_s_own_in_order() -> None:
    active = make_stratum([[1], [2], [1]], [[8], [4], [8]], first_id=10)
    order = np.array([2, 0, 1])
    shuffled = type(active)(active.windows.take(order), active.activations[order], 3)
    label = TokenLookupExplainer().explain(make_contexts(shuffled, SILENT), WORDS.__getitem__)
    assert label.window_ids == (10, 11, 12)
    assert all(type(window_id) is int for window_id in label.window_ids)


def test_a_feature_that_never_fires_has_no_label_but_a_reason() -> None:
    for label in (explain([], []), explain([[1, 2]], [[0, 0]])):
        assert (label.status, label.reason) == ("failed", NEVER_ACTIVE)
        assert label.text is None
        assert label.explanation is None


def test_a_feature_equally_active_everywhere_has_no_label_but_a_reason() -> None:
    always = make_stratum([[1, 2], [3, 6]], [[5, 5], [5, 5]])
    contexts = make_contexts(always, make_stratum([]))
    label = TokenLookupExplainer().explain(contexts, WORDS.__getitem__)
    assert (label.status, label.reason) == ("failed", NO_TOKEN_STANDS_OUT)


def test_tokens_that_look_alike_are_listed_once_at_the_stronger_mean() -> None:
    named = name_strongest(lookup_of({1: 5.0, 5: 9.0, 2: 8.0}), WORDS.__getitem__)
    assert [(token.text, token.mean) for token in named] == [("import", 9.0), ("from", 8.0)]


def test_tokens_below_a_quarter_of_the_strongest_are_not_listed() -> None:
    named = name_strongest(lookup_of({1: 8.0, 2: 2.0, 3: 1.9}), WORDS.__getitem__)
    assert [token.text for token in named] == ["import", "from"]


def test_tokens_not_above_the_mean_of_all_are_not_listed() -> None:
    named = name_strongest(lookup_of({1: 8.0, 2: 5.0}, global_mean=5.0), WORDS.__getitem__)
    assert [token.text for token in named] == ["import"]


def test_a_label_lists_no_more_than_its_maximum() -> None:
    named = name_strongest(lookup_of({i: 9.0 for i in range(20)}), "token {}".format)
    assert [token.text for token in named] == [f"token {i}" for i in range(MAX_TOKENS)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("▁import", "import"),
        (" from ", "from"),
        ("new york", "new york"),
        ("\n", "⏎"),
        ("\n\n", "⏎⏎"),
        ("\n    ", "⏎"),
        ("\t", "⇥"),
        ("\r\n", "␍⏎"),
        (" ", "␣"),
        ("▁▁", "␣␣"),
        ("▁" * 16, "␣×16"),
        ("\t" * 5, "⇥×5"),
        ("====", "===="),
        ("\x00", "\\x00"),
        ("\udce9", "\\udce9"),
        ("é", "é"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, shown: str) -> None:
    assert make_visible(text) == shown
