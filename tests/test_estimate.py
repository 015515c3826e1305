"""Estimates from the prompts of a sample; labels derived again; what is shown of both."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scopenote.flows.estimate import ASSUMED_REPLY_TOKENS, estimate_labels, render_estimate
from scopenote.flows.estimate_ratings import RatingEstimate
from scopenote.flows.explain_settings import ChatSection, ExplainSection
from scopenote.flows.feature_prompts import PromptSource
from scopenote.flows.label_plan import plan_labels
from scopenote.flows.score_settings import InterventionSection, JudgeSection, ScoreSection
from scopenote.label.prompted import PROMPTED
from scopenote.label.prompts import RenderedPrompt
from scopenote.store.database import Store
from scopenote.store.labels import drawn_features

from .made_up_run import MLP, NEVER_ACTIVE, RES, WIDTH, make_database
from .test_summary import rendered


@pytest.fixture(scope="module")
def store() -> Store:
    return Store(make_database())


def settings(*explainers: str, **more: object) -> ExplainSection:
    chat = ChatSection(model=more.pop("model", "gpt-4o-mini"), max_reply_tokens=400)
    return ExplainSection(explainers=explainers, chat=chat, **more)


def test_an_estimate_of_everything_is_the_sum_of_all_prompts(store: Store) -> None:
    estimate = estimate_labels(store, settings("highlighted", "output", candidates=2))
    source = PromptSource.of(store)
    for each in estimate.explainers:
        with store.cursor() as connection:
            prompts = [
                prompt
                for sae_id in (RES, MLP)
                for _, prompt in source.render(
                    connection, PROMPTED[each.explainer], sae_id, range(WIDTH)
                )
            ]
        sizes = [p.estimated_tokens for p in prompts if isinstance(p, RenderedPrompt)]
        assert each.n_features == each.n_sampled == 2 * WIDTH
        assert each.n_calls == 2 * len(sizes)
        assert each.prompt_tokens == 2 * sum(sizes)
        assert each.completion_tokens == each.n_calls * ASSUMED_REPLY_TOKENS
        assert (
            each.usd
            == (each.prompt_tokens * Decimal("0.15") + each.completion_tokens * Decimal("0.6"))
            / 10**6
        )
    assert estimate.n_replies == 0


def test_features_that_need_no_call_cost_nothing(store: Store) -> None:
    (estimate,) = estimate_labels(store, settings("highlighted")).explainers
    # One of each SAE is never active.
    assert estimate.n_calls == 2 * WIDTH - 2
    assert NEVER_ACTIVE < WIDTH


def test_few_features_are_drawn_from_all_that_are_active_always_the_same(store: Store) -> None:
    few = settings("highlighted", features=9)
    plan = plan_labels(store, few, lambda: PromptSource.of(store))
    chosen = {(each.sae_id, each.feature) for each in plan.wanted}
    assert chosen == drawn_features(store.connection, 9)
    assert len(chosen) == 9
    assert len({sae_id for sae_id, _ in chosen}) == 2
    assert chosen < drawn_features(store.connection, 20)
    assert NEVER_ACTIVE not in {feature for _, feature in drawn_features(store.connection, 999)}


def test_the_price_of_an_unknown_model_is_unknown_and_not_nothing(store: Store) -> None:
    estimate = estimate_labels(store, settings("highlighted", model="llama"))
    assert estimate.usd is None
    page = rendered(render_estimate(estimate))
    assert "unknown" in page
    assert "$0" not in page


def test_a_model_on_this_machine_is_known_to_cost_nothing(store: Store) -> None:
    chat = ChatSection(model="some/folder", local=True)
    estimate = estimate_labels(store, ExplainSection(explainers=("highlighted",), chat=chat))
    assert estimate.n_calls > 0
    assert (estimate.usd, estimate.usd_at_most) == (0, 0)
    page = rendered(render_estimate(estimate))
    assert "about $0.00" in page
    assert "runs on this machine" in " ".join(page.split())


def test_the_page_says_what_it_rests_on_in_eighty_columns(store: Store) -> None:
    page = rendered(
        render_estimate(estimate_labels(store, settings("highlighted", "output"))), width=80
    )
    assert "gpt-4o-mini" in page
    assert "150 tokens a reply, assumed" in " ".join(page.split())
    assert "Prices of 2026-11" in " ".join(page.split())
    assert max(map(len, page.splitlines())) <= 80


def judged_by(model: str, *simulators: str, **more: Any) -> ScoreSection:
    chat = JudgeSection(
        model=model, active_windows=2, silent_windows=3, shuffled_labels=7, gold=False, **more
    )
    return ScoreSection(simulators=("token_lookup", *(simulators or ("chat",))), chat=chat)


@pytest.fixture(scope="module")
def with_all_splits() -> Store:
    """The same windows, for the other splits again."""
    connection = make_database()
    for number, split in enumerate(("select", "score"), start=1):
        connection.execute(
            f"""
            INSERT INTO windows SELECT * REPLACE (
                window_id + {number} * 1000000 AS window_id, '{split}' AS split,
                true AS is_background
            ) FROM windows WHERE split = 'explain' AND window_id < 1000000;
            INSERT INTO contexts SELECT * REPLACE (
                window_id + {number} * 1000000 AS window_id, '{split}' AS split
            ) FROM contexts WHERE split = 'explain' AND window_id < 1000000;
            """
        )
    return Store(connection)


def test_ratings_are_counted_beside_the_labels(with_all_splits: Store) -> None:
    store = with_all_splits
    alone = estimate_labels(store, settings("highlighted"), judged_by("gpt-4o-mini"))
    (ratings,) = alone.ratings
    n_labels = alone.explainers[0].n_calls
    # Seven features once more under another's label.
    n_rated = n_labels + 7
    assert ratings.n_labels == n_rated
    # At most two active windows, three silent and the five strongest each.
    assert 5 * n_rated <= ratings.n_calls <= 10 * n_rated
    assert alone.n_calls == n_labels + ratings.n_calls
    assert ratings.usd is not None
    assert alone.usd == alone.explainers[0].usd + ratings.usd
    assert alone.usd < alone.usd_at_most
    assert alone.models == ("gpt-4o-mini",)
    # Three candidates are compared on one split, and the best is scored on the other.
    several = settings("highlighted", candidates=3)
    best_of_three = estimate_labels(store, several, judged_by("llama"))
    assert best_of_three.ratings[0].n_labels == 4 * n_labels + 7
    assert best_of_three.usd is None
    page = rendered(render_estimate(best_of_three), width=80)
    assert "gpt-4o-mini and llama" in page
    assert f"{4 * n_labels + 7} labels" in page
    assert max(map(len, page.splitlines())) <= 80


def test_labels_of_others_are_counted_where_no_explainer_asks_a_model() -> None:
    connection = make_database()
    connection.execute(
        f"""
        INSERT INTO windows SELECT * REPLACE (
            window_id + 1000000 AS window_id, 'score' AS split, true AS is_background
        ) FROM windows WHERE split = 'explain';
        INSERT INTO contexts SELECT * REPLACE (
            window_id + 1000000 AS window_id, 'score' AS split
        ) FROM contexts WHERE split = 'explain';
        INSERT INTO labels BY NAME SELECT * REPLACE (
            label_id || 'x' AS label_id, 'theirs' AS explainer, 'imported' AS source
        ) FROM labels WHERE sae_id = '{RES}' AND status = 'done';
        """
    )
    ((n,),) = connection.execute("SELECT count(*) FROM labels WHERE source = 'imported'").fetchall()
    with Store(connection) as store:
        found = estimate_labels(store, ExplainSection(), judged_by("gpt-4o-mini"))
    (ratings,) = found.ratings
    assert ratings.n_labels == n + 7
    assert (found.explainers, found.model) == ((), None)
    assert found.models == ("gpt-4o-mini",)
    assert found.usd == ratings.usd
    page = rendered(render_estimate(found), width=80)
    assert "From windows as they would be sent." in page
    assert "a reply" not in page


def test_each_way_of_asking_has_a_row(with_all_splits: Store) -> None:
    scoring = judged_by(
        "gpt-4o-mini",
        "chat",
        "chat_sparse",
        screen="chat_sparse",
        screened_windows=32,
        second_opinions=("detection", "fuzzing", "discrimination"),
        opinion_windows=4,
    )
    found = estimate_labels(with_all_splits, settings("highlighted"), scoring)
    rows = {row.what: row for row in found.ratings}
    n = found.explainers[0].n_calls
    assert rows["scores by chat_sparse"].n_calls < rows["scores by chat"].n_calls / 10
    assert rows["scores by chat_sparse"].usd < rows["scores by chat"].usd
    assert rows["screening"].n_calls == 2 * n
    # Four positives and as many negatives of either kind, eight a call.
    assert rows["detection"].n_calls == rows["fuzzing"].n_calls == 2 * n
    assert rows["discrimination"].n_calls == 4 * n
    assert all(row.prompt_tokens > row.completion_tokens > 0 for row in found.ratings)
    assert max(map(len, rendered(render_estimate(found), width=80).splitlines())) <= 80


def test_questions_about_outputs_are_counted_for_the_features_that_are_drawn(
    with_all_splits: Store,
) -> None:
    def questions(n_features: int, **more: int) -> RatingEstimate | None:
        intervention = InterventionSection(features=n_features, **more)
        scoring = judged_by("gpt-4o-mini").model_copy(update={"intervention": intervention})
        found = estimate_labels(with_all_splits, settings("highlighted"), scoring)
        return next((row for row in found.ratings if row.what == "intervention"), None)

    few = questions(5)
    assert few is not None
    assert (few.n_labels, few.n_calls) == (5, 50)
    assert few.prompt_tokens > 50 * 500
    assert few.usd is not None and few.usd_at_most is not None
    assert 0 < few.usd < few.usd_at_most
    other = questions(5, questions=3, random_features=6)
    assert other is not None
    assert other.n_calls == 15
    assert questions(0) is None
    assert questions(5, questions=0) is None
    # No more than there are labels, and labels to come.
    every = questions(100_000)
    assert every is not None
    assert every.n_labels < 200


def test_gold_items_are_counted_only_where_something_is_rated(with_all_splits: Store) -> None:
    chat = JudgeSection(model="gpt-4o-mini", shuffled_labels=0)
    scoring = ScoreSection(simulators=("chat",), chat=chat)
    found = estimate_labels(with_all_splits, settings("highlighted"), scoring)
    (gold,) = (row for row in found.ratings if row.what == "gold items by chat")
    assert gold.n_calls == 96
    assert gold.usd < 0.05
    local = ScoreSection(simulators=("local",), chat=JudgeSection(model="folder", local=True))
    assert estimate_labels(with_all_splits, settings("highlighted"), local).ratings == ()


def test_nothing_is_written_for_an_estimate(store: Store, tmp_path: Path) -> None:
    before = store.connection.execute("SELECT count(*) FROM labels").fetchall()
    estimate_labels(store, settings("highlighted"))
    assert store.connection.execute("SELECT count(*) FROM labels").fetchall() == before
    assert list(tmp_path.iterdir()) == []
