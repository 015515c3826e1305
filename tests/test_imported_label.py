"""Rows that others wrote: which label each is, or why it is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.label import imported_label
from scopenote.label.imported_label import LabelImporter, LeftOut
from scopenote.store.label_files import FileRow
from scopenote.store.records import FeatureId, Label

RES, MLP, NEURONS = "m/1-res-1k", "m/1-mlp-1k", "m/1-mlp-neurons"
WIDTHS = {RES: 40, MLP: 40, NEURONS: 20}


def come_to(*, widths: dict[str, int] | None = None, **fields: Any) -> Label | LeftOut:
    row = FileRow(line=1, **{"feature": f"{RES}/7", "text": "a word", **fields})
    return LabelImporter("np", widths or WIDTHS).label(row)


def feature_of(**fields: Any) -> str:
    found = come_to(**fields)
    assert isinstance(found, Label), found
    return str(found.feature_id)


def reason_of(**fields: Any) -> str:
    found = come_to(**fields)
    assert isinstance(found, LeftOut), found
    return found.reason


def test_a_row_becomes_an_imported_label() -> None:
    found = come_to(
        text=" a\x1b[31m  word\n", explanation="so", explainer="oai", author="ann", model="gpt"
    )
    assert found == Label(
        feature_id=FeatureId(RES, 7),
        text="a word",
        explanation="so",
        explainer="np/oai",
        prompt_version="unknown",
        window_ids=(),
        model="gpt",
        source="imported",
        author="ann",
    )


def test_what_a_row_does_not_say_is_the_sources_or_nothing() -> None:
    found = come_to(explanation="\u200b", explainer=" ", author=None, model="")
    assert isinstance(found, Label)
    assert (found.explainer, found.author) == ("np", "np")
    assert (found.explanation, found.model) == (None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"feature": "m/1-res-1k/7"},
        {"feature": " /m/1-res-1k/7/ "},
        {"feature": "1-res-1k/7"},
        {"feature": "7", "sae": "m/1-res-1k"},
        {"feature": 7, "sae": "1-res-1k"},
        {"feature": "007", "sae": "m/1-res-1k"},
        {"feature": "7", "widths": {RES: 40}},
    ],
)
def test_a_feature_may_be_named_in_several_ways(fields: dict[str, Any]) -> None:
    assert feature_of(**fields) == "m/1-res-1k/7"


def test_a_neuron_goes_by_its_own_name() -> None:
    assert feature_of(feature="m/1-mlp-neurons/7-") == "m/1-mlp-neurons/7-"
    assert reason_of(feature="m/1-mlp-neurons/10+") == imported_label.NO_FEATURE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"fault": "no `index`"}, imported_label.BROKEN),
        ({"feature": None}, imported_label.NO_NAME),
        ({"feature": ""}, imported_label.UNNAMED_SAE),
        ({"feature": "", "sae": RES}, imported_label.NO_NAME),
        ({"feature": "seven", "sae": RES}, imported_label.NO_NAME),
        ({"feature": "-1", "sae": RES}, imported_label.NO_NAME),
        ({"feature": "٣", "sae": RES}, imported_label.NO_NAME),
        ({"feature": 7.0, "sae": RES}, imported_label.NO_NAME),
        ({"feature": True, "sae": RES}, imported_label.NO_NAME),
        ({"feature": [7], "sae": RES}, imported_label.NO_NAME),
        ({"feature": 7, "sae": [RES]}, imported_label.NO_NAME),
        ({"feature": -1, "sae": RES}, imported_label.NO_NAME),
        ({"feature": "40", "sae": RES}, imported_label.NO_FEATURE),
        ({"feature": "9" * 9999, "sae": RES}, imported_label.NO_FEATURE),
        ({"feature": 10**20, "sae": RES}, imported_label.NO_FEATURE),
        ({"feature": "7"}, imported_label.UNNAMED_SAE),
        ({"feature": "m/2-res-1k/7"}, imported_label.OTHER_SAE),
        ({"feature": "2-res-1k/7"}, imported_label.OTHER_SAE),
        ({"feature": "gemma/1-res-1k/7"}, imported_label.OTHER_MODEL),
        ({"feature": "s/7", "widths": {"a/s": 9, "b/s": 9}}, imported_label.SEVERAL_SAES),
        ({"text": None}, imported_label.NO_TEXT),
        ({"text": ""}, imported_label.NO_TEXT),
        ({"text": 7}, imported_label.NOT_TEXT),
        ({"text": " \u200b\u0301"}, imported_label.SHOWS_NOTHING),
        ({"text": "a" * (imported_label.MAX_IMPORTED_CHARACTERS + 1)}, imported_label.TOO_LONG),
        ({"explanation": "a" * 2_001}, imported_label.LONG_EXPLANATION),
        ({"model": "a" * 101}, imported_label.LONG_NAME),
    ],
)
def test_a_row_that_is_no_label_is_left_out_for_its_reason(
    fields: dict[str, Any], reason: str
) -> None:
    assert reason_of(**fields) == reason


def test_what_is_shown_of_such_a_row_is_clean_and_short() -> None:
    found = come_to(feature="\x1b[31mred\u202e" * 99)
    assert isinstance(found, LeftOut)
    assert found.what.isprintable()
    assert len(found.what) < 250


def test_the_longest_label_is_taken() -> None:
    assert isinstance(come_to(text="a" * imported_label.MAX_IMPORTED_CHARACTERS), Label)


def test_text_and_author_tell_imported_labels_apart() -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"text": "another"},
        {"author": "ann"},
        {"explainer": "oai"},
        {"model": "gpt"},
        {"feature": f"{RES}/8"},
    ]
    ids = {found.label_id for row in rows if isinstance(found := come_to(**row), Label)}
    assert len(ids) == len(rows)


_ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(feature=_ANY, sae=_ANY, text=_ANY, explanation=_ANY, explainer=_ANY, author=_ANY)
def test_no_row_is_too_strange(**fields: Any) -> None:
    found = come_to(**fields)
    if isinstance(found, Label):
        assert found.text
        assert found.text.isprintable() or any(sign in found.text for sign in "\u200c\u200d")
