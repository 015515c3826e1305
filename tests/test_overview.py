"""An overview counts what the rows of features say, and says what the null ladder says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from scopenote.store.current_features import refresh_current_features
from scopenote.store.facts import set_meta
from scopenote.store.null_ladder import read_null_ladder
from scopenote.store.overview import OverviewQuery, read_overview
from scopenote.store.score_spread import read_density_plot, read_ladder, read_worst

from .made_up_run import FAILED, MLP, NEGATIVE, NEVER_ACTIVE, RES, UNDEFINED, WIDTH, make_database

JUDGE = "chat/m"


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with make_database() as connection:
        add_rivals(connection)
        yield connection


def add_rivals(connection: duckdb.DuckDBPyConnection) -> None:
    """Labels by a model for every other feature, judged, and some under other labels."""
    draw = random.Random(5)
    for sae_id in (RES, MLP):
        for feature in range(0, WIDTH, 2):
            if feature in (NEVER_ACTIVE, FAILED):
                continue
            label_id = f"{sae_id}:{feature}:model"
            connection.execute(
                "INSERT INTO labels (label_id, sae_id, feature, text, explainer, prompt_version, "
                "model, source, status, generation) "
                "VALUES ($1, $2, $3, 'words', 'highlighted', '1', 'm', 'auto', 'done', 0)",
                [label_id, sae_id, feature],
            )
            for scorer, split in (
                ("simulation", "score"),
                ("simulation", "select"),
                ("shuffled_label", "score"),
            ):
                value = None if draw.random() < 0.2 else draw.uniform(-0.2, 1)
                if scorer == "shuffled_label":
                    value = None if value is None else value / 3
                connection.execute(
                    "INSERT INTO scores (label_id, scorer, simulator, metric, split, value, "
                    "reason, null_value) VALUES ($1, $2, $3, 'correlation', $4, $5, $6, $7)",
                    [label_id, scorer, JUDGE, split, value,
                     "predicts nothing" if value is None else None, draw.random()],
                )  # fmt: skip
    renew(connection)


def renew(connection: duckdb.DuckDBPyConnection) -> None:
    set_meta(connection, "revision", str(random.random()))
    assert refresh_current_features(connection)


def rows_of(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    found = connection.execute("FROM current_features")
    names = [each[0] for each in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_coverage_is_what_one_would_count(connection: duckdb.DuckDBPyConnection) -> None:
    rows = rows_of(connection)
    coverage = read_overview(connection, OverviewQuery()).coverage
    assert coverage.n_features == len(rows) == 2 * WIDTH
    assert coverage.n_alive == sum(row["n_active"] > 0 for row in rows)
    assert coverage.n_labelled == sum(row["label_id"] is not None for row in rows)
    assert coverage.n_scored == sum(row["score"] is not None for row in rows)
    assert dict(coverage.undefined) == Counter(
        row["score_reason"] for row in rows if row["score_reason"] is not None
    )
    assert dict(coverage.failures) == {"never active in explain": 2}
    assert (coverage.n_silent, coverage.n_untried, coverage.n_unscored) == (2, 0, 0)
    hands = {(each.source, each.explainer): each.n for each in coverage.labelled}
    assert hands == Counter(
        (row["source"], row["explainer"]) for row in rows if row["label_id"] is not None
    )


def test_every_feature_is_counted_in_one_place(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DELETE FROM scores WHERE label_id LIKE '%:11'")
    connection.execute("DELETE FROM labels WHERE feature = 12")
    renew(connection)
    c = read_overview(connection, OverviewQuery()).coverage
    assert (c.n_unscored, c.n_untried) == (2, 2)
    parts = (c.n_scored, c.n_undefined, c.n_unscored, c.n_failed, c.n_untried, c.n_silent)
    assert sum(parts) == c.n_features


def test_with_an_explainer_only_its_labels_count(connection: duckdb.DuckDBPyConnection) -> None:
    found = read_overview(connection, OverviewQuery(explainer="highlighted"))
    mine = [row for row in rows_of(connection) if row["explainer"] == "highlighted"]
    assert 0 < found.coverage.n_labelled == len(mine) < 2 * WIDTH - 4
    assert found.coverage.n_features == 2 * WIDTH
    assert found.coverage.n_failed == 0
    assert {bars.explainer for bars in found.bars} == {"highlighted"}
    assert sum(sae.n_labelled for sae in found.saes) == len(mine)
    assert found.explainers == ("highlighted", "token_lookup")


def test_bars_hold_each_score_once_also_one_and_those_below_zero(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute(
        "UPDATE scores SET value = 1 WHERE label_id = $1 AND split = 'score'", [f"{RES}:3"]
    )
    renew(connection)
    scores = [row for row in rows_of(connection) if row["score"] is not None]
    expected: dict[tuple[str, str], Counter[int]] = {}
    for row in scores:
        by = expected.setdefault((row["explainer"], row["simulator"]), Counter())
        by[min(19, int(row["score"] * 20 // 1))] += 1
    bars = read_overview(connection, OverviewQuery()).bars
    assert {(each.explainer, each.simulator): dict(each.counts) for each in bars} == expected
    assert any(-1 in each.counts for each in bars)
    assert any(row["feature"] == NEGATIVE for row in scores)


def test_an_sae_has_its_own_figures(connection: duckdb.DuckDBPyConnection) -> None:
    (sae,) = read_overview(connection, OverviewQuery(sae=RES)).saes
    scores = sorted(
        row["score"]
        for row in rows_of(connection)
        if row["sae_id"] == RES and row["score"] is not None
    )
    middle = len(scores) // 2
    assert sae.median == pytest.approx((scores[middle] + scores[-middle - 1]) / 2)
    assert (sae.n_features, sae.n_alive, sae.mean_l0) == (WIDTH, WIDTH - 1, 12.34)
    assert sae.alive == pytest.approx((WIDTH - 1) / WIDTH)
    assert sae.n_scored == len(scores)


def test_saes_are_found_by_name_beginning_site_and_layer(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute(
        "INSERT INTO saes BY NAME SELECT * REPLACE ($1 AS sae_id, 2 AS layer) FROM saes "
        "WHERE sae_id = $2",
        [f"{RES}-l0-22", RES],
    )

    def found(**asked: Any) -> list[str]:
        query = OverviewQuery(**asked)
        return [sae.sae_id for sae in read_overview(connection, query).saes]

    assert found(sae=RES) == [RES]
    assert found(sae="toy-gemma-2/1-r") == [RES, f"{RES}-l0-22"]
    assert found(site="mlp") == [MLP]
    assert found(layer=2) == [f"{RES}-l0-22"]
    assert found(site="att") == found(sae="' OR 1=1 --") == []


def test_what_there_is_not_is_an_empty_overview(connection: duckdb.DuckDBPyConnection) -> None:
    found = read_overview(connection, OverviewQuery(site="nowhere"))
    assert (found.saes, found.coverage.n_features, found.bars) == ((), 0, ())
    assert len(found.all_saes) == 2


def test_the_ladder_is_that_of_the_terminal(connection: duckdb.DuckDBPyConnection) -> None:
    ladder = read_ladder(connection)
    assert ladder == read_null_ladder(connection)
    (model,) = (row for row in ladder if row.simulator == JUDGE)
    assert model.n_shuffled_undefined and model.n_above_shuffled


def test_the_ladder_without_shuffled_labels_says_that_there_are_none(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute("UPDATE scores SET value = NULL WHERE scorer = 'shuffled_label'")
    renew(connection)
    ladder = read_ladder(connection)
    assert ladder == read_null_ladder(connection)
    assert {row.n_above_shuffled for row in ladder} == {None}


def test_the_ladder_of_one_sae_and_explainer_is_that_of_its_labels_alone(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    found = read_ladder(connection, [RES], "highlighted")
    connection.execute(
        "DELETE FROM scores WHERE label_id NOT IN (SELECT label_id FROM labels "
        "WHERE sae_id = $1 AND explainer = 'highlighted')",
        [RES],
    )
    assert len(found) == 1 and found == read_null_ladder(connection)


def test_every_scored_feature_is_in_a_cell_and_few_are_all_dots(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = [row for row in rows_of(connection) if row["score"] is not None]
    plot = read_density_plot(connection)
    assert plot.n == sum(cell.n for cell in plot.cells) == len(rows)
    assert not plot.is_sample
    assert {(d.feature_id.sae_id, d.feature_id.feature, d.score) for d in plot.dots} == {
        (row["sae_id"], row["feature"], row["score"]) for row in rows
    }
    assert all(dot.text for dot in plot.dots)


def test_a_sample_of_dots_is_always_the_same(connection: duckdb.DuckDBPyConnection) -> None:
    ten, twenty = (read_density_plot(connection, most=most) for most in (10, 20))
    assert ten.is_sample and len(ten.dots) == 10
    assert ten.cells == twenty.cells
    assert ten.dots == twenty.dots[:10]
    connection.execute(
        "CREATE TABLE other AS FROM current_features ORDER BY feature DESC; "
        "DELETE FROM current_features; INSERT INTO current_features FROM other"
    )
    assert read_density_plot(connection, most=10).dots == ten.dots


def test_the_worst_come_first_and_undefined_scores_not_at_all(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    worst = read_worst(connection, [RES], "token_lookup", most=5)
    scores = sorted(
        row["score"]
        for row in rows_of(connection)
        if row["sae_id"] == RES and row["explainer"] == "token_lookup" and row["score"] is not None
    )
    assert [row.score for row in worst] == scores[:5]
    assert UNDEFINED not in {row.feature_id.feature for row in worst}


def test_nothing_is_read_but_what_is_made_for_it(connection: duckdb.DuckDBPyConnection) -> None:
    before = (
        read_overview(connection, OverviewQuery()),
        read_ladder(connection),
        read_density_plot(connection),
        read_worst(connection),
    )
    connection.execute("DROP VIEW current_labels")
    for table in ("labels", "scores", "contexts", "features", "feature_splits", "windows"):
        connection.execute(f"DROP TABLE {table}")
    assert before == (
        read_overview(connection, OverviewQuery()),
        read_ladder(connection),
        read_density_plot(connection),
        read_worst(connection),
    )
