"""Estimates from the prompts of a sample; labels derived again; what is shown of both."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from scopenote.flows.estimate import ASSUMED_REPLY_TOKENS, estimate_labels, render_estimate
from scopenote.flows.explain_settings import ChatSection, ExplainSection
from scopenote.flows.feature_prompts import PromptSource, features_to_ask_about
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
    asked = features_to_ask_about(
        store, PROMPTED["highlighted"], settings("highlighted", features=9)
    )
    chosen = {(sae_id, feature) for sae_id, features in asked.items() for feature in features}
    assert chosen == drawn_features(store.connection, 9)
    assert len(chosen) == 9
    assert len(asked) == 2
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


def test_nothing_is_written_for_an_estimate(store: Store, tmp_path: Path) -> None:
    before = store.connection.execute("SELECT count(*) FROM labels").fetchall()
    estimate_labels(store, settings("highlighted"))
    assert store.connection.execute("SELECT count(*) FROM labels").fetchall() == before
    assert list(tmp_path.iterdir()) == []
