"""A feature's page: what is read, how an id may be written, and what reaches the terminal."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scopenote.flows.show_feature import percentage, render_feature, shade, sparkline
from scopenote.flows.visible_text import visible
from scopenote.store.errors import UserMistake
from scopenote.store.feature_page import (
    FeaturePage,
    ShownScore,
    ShownToken,
    find_feature,
    read_feature_page,
)
from scopenote.store.records import FeatureId

from .made_up_run import FAILED, HOSTILE, MLP, NEVER_ACTIVE, PIECES, RES, UNDEFINED, make_database


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with make_database() as connection:
        yield connection


def page_of(connection: duckdb.DuckDBPyConnection, feature: int, **choices: Any) -> FeaturePage:
    return read_feature_page(connection, FeatureId(RES, feature), **choices)


def rendered(page: FeaturePage, width: int = 100, colour: bool = False) -> str:
    stream = io.StringIO()
    system = "truecolor" if colour else None
    Console(
        file=stream, width=width, color_system=system, force_terminal=colour, highlight=False
    ).print(render_feature(page))
    return stream.getvalue()


@pytest.mark.parametrize("written", [f"{RES}/7", "1-res-1k/7", f" {RES}/7/ "])
def test_an_id_may_leave_out_the_model(connection: duckdb.DuckDBPyConnection, written: str) -> None:
    assert find_feature(connection, written) == FeatureId(RES, 7)


def test_a_bare_number_is_enough_where_there_is_one_sae(tmp_path: Path) -> None:
    with make_database() as connection:
        for table in ("saes", "features"):
            connection.execute(f"DELETE FROM {table} WHERE sae_id = ?", [MLP])
        assert find_feature(connection, "7") == FeatureId(RES, 7)


def test_a_bare_number_is_refused_where_there_are_several(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    with pytest.raises(UserMistake) as caught:
        find_feature(connection, "7")
    assert caught.value.mend == f"write `{MLP}/7` or `{RES}/7`"


@pytest.mark.parametrize(
    ("written", "mend"),
    [
        (f"{RES}/40", f"the nearest is `{RES}/39`"),
        ("toy-gemma-2/1-ress-1k/99", f"the nearest is `{RES}/39`"),
        ("es-1k/3", f"the nearest is `{RES}/3`"),
        (f"{RES}/x", f"for example `{RES}/0`"),
        (f"{RES}/-1", f"for example `{RES}/0`"),
        (f"{RES}/²", f"for example `{RES}/0`"),
        ("", f"for example `{MLP}/0`"),
    ],
)
def test_an_unknown_feature_is_answered_with_the_nearest_and_the_ranges(
    connection: duckdb.DuckDBPyConnection, written: str, mend: str
) -> None:
    with pytest.raises(UserMistake) as caught:
        find_feature(connection, written)
    assert caught.value.mend == mend
    assert f"{RES}/0 to 39" in (caught.value.expected or "")


def test_an_empty_database_has_no_features_yet(tmp_path: Path) -> None:
    with make_database() as connection:
        connection.execute("DELETE FROM features")
        with pytest.raises(UserMistake, match="collected yet"):
            find_feature(connection, f"{RES}/0")


def test_contexts_come_in_their_rank_with_text_and_activations(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    page = page_of(connection, 0, n_contexts=3)
    assert [context.rank for context in page.contexts] == [1, 2, 3]
    assert page.n_contexts == 12
    first = page.contexts[0]
    assert first.tokens[: len(PIECES)] == tuple(PIECES)
    assert len(first.tokens) == len(first.activations) == 64
    assert max(first.activations) == pytest.approx(first.peak)
    assert first.activations[12] == pytest.approx(first.peak)
    assert first.activations[1] == 0


def test_a_split_and_kind_without_contexts_says_so(connection: duckdb.DuckDBPyConnection) -> None:
    page = page_of(connection, 0, split="score", kind="sample")
    assert page.contexts == ()
    assert "No contexts kept of split score, kind sample." in rendered(page)


def test_a_token_without_a_piece_is_shown_by_its_number(tmp_path: Path) -> None:
    with make_database() as connection:
        connection.execute("DELETE FROM pieces WHERE token_id = 0")
        assert page_of(connection, 0).contexts[0].tokens[0] == "<0>"


def test_the_headline_score_on_unseen_text_comes_first(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    scores = page_of(connection, 0).scores
    assert [(score.metric, score.split) for score in scores] == [
        ("correlation", "score"),
        ("ev_correlation", "score"),
        ("correlation", "select"),
    ]


def test_an_undefined_score_is_a_dash_with_its_reason(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    text = rendered(page_of(connection, UNDEFINED), width=140)
    assert re.search(r"correlation +score +–", text)
    assert "correlation on score is undefined: too few active tokens" in text


def test_figures_missing_for_one_reason_are_said_in_one_line_and_quarters_in_another() -> None:
    def score(metric: str, value: float | None, **more: Any) -> ShownScore:
        given = dict.fromkeys(field.name for field in fields(ShownScore))
        given |= {"scorer": "simulation", "simulator": "token_lookup", "split": "score"}
        return ShownScore(**{**given, "metric": metric, "value": value, "n_windows": 3, **more})

    null = "the simulator is the null itself"
    scores = [
        score("correlation", 0.5, lift_reason=null),
        score("ev_correlation_top", 0.25, lift_reason=null),
        score("ev_r_squared_top", 0.125, lift_reason=null),
        *(score(f"correlation_quarter_{n}", n / 10, lift_reason=null) for n in (4, 1, 3, 2)),
    ]
    with make_database() as connection:
        page = replace(page_of(connection, 0), scores=tuple(scores))
    text = rendered(page, width=100)
    assert "correlation on score and 1 more have no lift: the simulator is the null itself" in text
    assert text.count(null) == 1
    assert "weakest first, on score:  0.10  0.20  0.30  0.40" in text
    assert "ev_r_squared" not in text


def test_a_failed_label_is_shown_with_its_reason(connection: duckdb.DuckDBPyConnection) -> None:
    text = rendered(page_of(connection, FAILED))
    assert re.search(r"label +none", text)
    assert "token_lookup: never active in explain" in text


def test_a_feature_that_never_fired_says_so(connection: duckdb.DuckDBPyConnection) -> None:
    text = rendered(page_of(connection, NEVER_ACTIVE))
    assert "never active in this text" in text
    assert "none yet" in text


def test_without_colour_active_tokens_are_marked_by_strength(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    page = page_of(connection, 0, n_contexts=1)
    tokens = (" a", " b", "c", " d", "  ", "e")
    context = replace(
        page.contexts[0], prefix=(), start=0, tokens=tokens, activations=(0, 20, 12, 3, 0, 0.1)
    )
    text = rendered(replace(page, contexts=(context,)))
    assert " a «bc» ‹d›  ‹e›" in text


def test_with_colour_active_tokens_are_shaded_and_not_marked(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    text = rendered(page_of(connection, 0, n_contexts=1), colour=True)
    assert "«" not in text
    assert "48;2;255;122;70m" in text  # the ground of the peak


@pytest.mark.parametrize("width", [20, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(
    connection: duckdb.DuckDBPyConnection, width: int
) -> None:
    lines = rendered(page_of(connection, 0), width=width).splitlines()
    assert max(Console().measure(line).maximum for line in lines) <= width


def test_no_control_character_of_the_corpus_reaches_the_terminal(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    page = page_of(connection, 0)
    shown = {token for context in page.contexts for token in context.tokens}
    assert set(HOSTILE) <= shown
    text = rendered(page).replace("\n", "")
    assert {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Cn"}} == set()
    assert "[red]" in text  # and is no markup to rich either
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", rendered(page, colour=True)).replace("\n", "")
    assert "\x1b" not in coloured


@given(st.text())
def test_visible_text_holds_nothing_invisible(text: str) -> None:
    shown = visible(text)
    assert len(shown) >= len(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn"}


def test_newlines_and_tabs_have_signs_of_their_own() -> None:
    assert visible("a\n\tb\r") == "a⏎⇥b␍"
    assert visible("\x1b[2J\x7f\x9b\u202e") == "␛[2J␡⟨009B⟩⟨202E⟩"
    assert visible("naïve 日本 🙂") == "naïve 日本 🙂"


@given(st.floats(0, 1))
def test_every_strength_has_a_style(strength: float) -> None:
    assert bool(shade(strength)) == (strength > 0)


def test_small_counts_stay_visible_beside_large_ones() -> None:
    assert sparkline([1, 0, 1_000_000]) == "▁ █"
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "  "


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.0123, "1.2%"), (0.000999, "0.100%")],
)
def test_shares_keep_two_digits_that_say_something(share: float, text: str) -> None:
    assert percentage(share) == text


def test_the_page_as_json_names_the_feature_as_people_do(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    content = json.loads(json.dumps(page_of(connection, 0).as_dict(), default=str))
    assert content["feature_id"] == f"{RES}/0"
    assert len(content["contexts"][0]["tokens"]) == 64


def test_the_histogram_stands_between_its_ends(connection: duckdb.DuckDBPyConnection) -> None:
    assert re.search(r"histogram +0\.50 [▁-█]{6} 23\.40", rendered(page_of(connection, 0)))


def test_output_tokens_stand_in_quotes_with_their_logits(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    text = rendered(page_of(connection, 0))
    assert "raises      “ import” 0.51  “␛[31m” 0.40" in text
    assert "lowers      “⏎” −0.62  “ the” −0.30" in text


def test_top_tokens_stand_in_quotes_with_their_means_and_counts(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    text = rendered(page_of(connection, 0))
    assert "strong at   “(” 3.25 ×7  “ def” 1.50 ×1,204  “␛[31m” 0.04 ×1" in text


def test_output_tokens_of_spaces_are_counted_and_lines_break_between_tokens(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    tokens = [ShownToken(" " * n, 1.0) for n in (1, 3, 4, 12)] + [ShownToken(" a b", -0.5)] * 4
    lines = rendered(replace(page_of(connection, 0), top_tokens_positive=tuple(tokens)), 40)
    (first, *more) = re.findall(r"“.*”.*", lines.partition("raises")[2].partition("lowers")[0])
    assert first.rstrip() == "“␣” 1.00  “␣␣␣” 1.00"
    assert [line.rstrip() for line in more] == [
        "“␣×4” 1.00  “␣×12” 1.00",
        "“ a b” −0.50  “ a b” −0.50",
        "“ a b” −0.50  “ a b” −0.50",
    ]


def test_the_nearest_features_of_both_kinds_stand_side_by_side_with_their_labels(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    page = page_of(connection, 0)
    assert [(n.kind, n.rank, n.feature) for n in page.neighbours[:2]] == [
        ("cosine", 1, 1),
        ("cosine", 2, 4),
    ]
    assert [n.kind for n in page.neighbours] == ["cosine"] * 10 + ["cofiring"] * 3
    by_number = {each.feature: each for each in page.neighbours}
    own = page_of(connection, 1).label
    assert own is not None
    assert by_number[1].label == own.text
    assert by_number[NEVER_ACTIVE].label is None
    lines = rendered(page, width=120).splitlines()
    (heading,) = [n for n, line in enumerate(lines) if "by co-firing" in line]
    first, second, _, fourth, fifth, after = lines[heading + 1 : heading + 7]
    assert re.match(r" +1 +0.50  “.*” +2 +0.50 +39  “", first)
    assert re.match(r" +4 +0.33  “.*” +5 +0.25 +38  –", second)
    assert re.match(r" +16 +0.20  “[^“]*”, “[^“]*”, “[^“]*” *$", fourth)
    assert re.match(r" +25 ", fifth)
    assert not after.strip()


def test_a_feature_that_never_fires_has_output_tokens_and_directions(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    text = rendered(page_of(connection, NEVER_ACTIVE))
    assert "raises" in text
    assert "by direction" in text
    assert "by co-firing" not in text


def test_a_database_of_an_older_version_is_shown_without_what_it_lacks() -> None:
    with make_database() as connection:
        connection.execute("ALTER TABLE features DROP COLUMN top_logits_positive")
        for column in ("top_tokens", "top_token_means", "top_token_counts"):
            connection.execute(f"ALTER TABLE features DROP COLUMN {column}")
        connection.execute("ALTER TABLE neighbours DROP COLUMN n_together")
        page = page_of(connection, 0)
    assert page.top_tokens_positive[0] == ShownToken(" import", None)
    assert {neighbour.n_together for neighbour in page.neighbours} == {None}
    assert "raises      “ import”  “␛[31m”" in rendered(page)
    assert page.top_tokens == ()
    assert "strong at" not in rendered(page)
