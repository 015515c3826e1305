"""The overview shows a run at a glance, leads to what it counts, and explains what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from html import unescape
from pathlib import Path

import duckdb
import pytest
from scopenote.flows.dashboard import overview_page
from scopenote.flows.dashboard.app import create_app
from scopenote.flows.dashboard.recent import Recent
from scopenote.flows.dashboard.site import Site
from scopenote.store.database import open_work, publish
from scopenote.store.facts import set_meta
from scopenote.store.inbox import WrittenLabel, write_to_inbox
from scopenote.store.records import FeatureId, Label
from scopenote.store.score_spread import read_density_plot
from starlette.testclient import TestClient

from .made_up_run import MLP, RES, WIDTH, make_database

LATER = datetime(2026, 11, 22, tzinfo=UTC)
Change = Callable[[duckdb.DuckDBPyConnection], object]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_database(tmp_path / "work.duckdb").close()
    with open_work(tmp_path) as work:
        publish(work, tmp_path)
    return tmp_path


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Site(run)), base_url="http://localhost") as client:
        yield client


def change(run: Path, make: Change, revision: str = "changed") -> None:
    with open_work(run) as work:
        make(work)
        set_meta(work, "revision", revision)
        publish(work, run)


def page(client: TestClient, address: str = "/") -> str:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return answer.text


def words_of(text: str) -> str:
    """A page as it is read."""
    without = re.sub(r"<title>.*?</title>|<datalist.*?</datalist>", " ", text, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", without)).split())


def n_listed(client: TestClient, address: str) -> int:
    """How many features a list has, by its heading."""
    found = re.search(r'<h1>[^<]*<span class="dim">([\d,]+)</span>', page(client, address))
    assert found is not None, address
    return int(found[1].replace(",", ""))


def test_every_number_of_the_coverage_leads_to_so_many_features(client: TestClient) -> None:
    (table,) = re.findall(r'<table class="coverage">.*?</table>', page(client), flags=re.S)
    links = re.findall(r'<a href="(/features[^"]*)">([\d,]+)', table)
    assert len(links) >= 5
    for address, n in links:
        assert n_listed(client, unescape(address)) == int(n.replace(",", "")), address


def test_every_bar_leads_to_the_features_in_it(client: TestClient) -> None:
    bars = re.findall(r'<a href="([^"]*)" aria-label="score [^"]*: ([\d,]+)">', page(client))
    assert len(bars) > 10
    for address, n in bars:
        assert n_listed(client, unescape(address)) == int(n), address


def test_every_cell_leads_to_the_features_in_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(read_density_plot, most=10)
    monkeypatch.setattr(overview_page, "read_density_plot", few)
    text = page(client)
    assert f"10 of {2 * WIDTH - 6}, drawn by hash" in words_of(text)
    cells = re.findall(
        r'<a href="([^"]*)" tabindex="-1"><rect class="area[^>]*><title>(\d+) features', text
    )
    assert len(cells) > 20
    for address, n in cells[::5]:
        assert n_listed(client, unescape(address)) == int(n), address


def test_every_scored_feature_is_a_dot_that_leads_to_its_page(client: TestClient) -> None:
    dots = re.findall(r'<a class="dot" href="([^"]*)"', page(client))
    # Of each SAE one is never active, one failed, one undefined.
    assert len(set(dots)) == len(dots) == 2 * (WIDTH - 3)
    assert f"/{RES}/0" in dots


def test_filters_hold_for_all_of_the_page(client: TestClient) -> None:
    text = page(client, f"/?sae={MLP}&explainer=token_lookup")
    assert f"{WIDTH} features" in words_of(text)
    dots = re.findall(r'<a class="dot" href="([^"]*)"', text)
    assert dots and all(dot.startswith(f"/{MLP}/") for dot in dots)
    lists = re.findall(r'href="(/features\?[^"]*min_score[^"]*)"', text)
    assert lists and all("sae=toy-gemma-2%2F1-mlp-1k" in address for address in lists)


def test_a_site_is_a_filter_and_numbers_lead_to_its_features(client: TestClient) -> None:
    text = page(client, "/?site=mlp&layer=1")
    assert "1 of 2" in words_of(text) or MLP in words_of(text)
    (first,) = re.findall(r'>features</th>\s*<td class="n"><a href="([^"]*)"', text)
    assert n_listed(client, unescape(first)) == WIDTH


@pytest.mark.parametrize("asked", ["site=nowhere", "layer=77", "sae=' OR 1=1 --", "sae=x&site=y"])
def test_an_unknown_sae_is_explained_with_those_there_are(client: TestClient, asked: str) -> None:
    text = words_of(page(client, f"/?{asked}"))
    assert "No SAE of this run is like that. There are:" in text
    assert RES in text
    assert "Coverage" not in text


def test_an_unknown_explainer_is_explained_with_those_there_are(client: TestClient) -> None:
    text = words_of(page(client, "/?explainer=<script>alert(1)</script>"))
    assert "No label in force is by “<script>alert(1)</script>”. There are labels by" in text
    assert "token_lookup" in text
    assert "<script>alert" not in page(client, "/?explainer=<script>alert(1)</script>")


@pytest.mark.parametrize(
    "asked", ["layer=a", "layer=-1", "show=all", "nothing=1", "sae=" + 300 * "x"]
)
def test_what_no_address_means_is_refused(client: TestClient, asked: str) -> None:
    assert client.get(f"/?{asked}").status_code == 422


def test_fields_left_empty_ask_for_nothing(client: TestClient) -> None:
    assert page(client, "/?sae=&site=&layer=&explainer=&show=") == page(client)


def test_no_page_has_a_style_or_script_of_its_own(client: TestClient) -> None:
    for address in ("/", "/runs", "/runs/r2"):
        text = page(client, address)
        assert " style=" not in text and "<style" not in text
        assert re.findall(r"<script[^>]*>", text) == re.findall(
            r'<script src="/static/[^"]*" defer>', text
        )


def test_hostile_labels_are_shown_as_text(client: TestClient, run: Path) -> None:
    hostile = "<script>alert('label')</script> {{ 7 * 7 }} \u202e"
    change(
        run,
        lambda work: work.execute("UPDATE labels SET text = $1 WHERE text IS NOT NULL", [hostile]),
    )
    text = page(client)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#39;label&#39;)&lt;/script&gt; {{ 7 * 7 }} ⟨202E⟩" in text


def test_before_anything_is_scored_it_says_how_to(client: TestClient, run: Path) -> None:
    change(run, lambda work: work.execute("DELETE FROM scores"))
    text = words_of(page(client))
    assert f"{2 * WIDTH - 4} features have a label, and none is scored yet" in text
    assert f"scopenote score {run}" in text
    assert "Coverage" in text and "token_lookup" in text
    assert "Score against density" not in text and "Null:" not in text


def test_before_anything_is_labelled_it_says_how_to(client: TestClient, run: Path) -> None:
    change(run, lambda work: work.execute("DELETE FROM scores; DELETE FROM labels"))
    text = words_of(page(client))
    assert f"{2 * WIDTH - 2} features are active and none has a label yet" in text
    assert f"scopenote explain {run}" in text
    assert "12.3" in text  # the L0 of both SAEs


def test_before_anything_is_collected_it_says_how_to(client: TestClient, run: Path) -> None:
    change(
        run,
        lambda work: work.execute(
            "DELETE FROM scores; DELETE FROM labels; DELETE FROM features; DELETE FROM saes"
        ),
    )
    text = words_of(page(client))
    assert f"scopenote collect {run}" in text
    assert "Coverage" not in text and "labels by" not in text


def test_scores_that_are_all_undefined_are_said_to_be_so(client: TestClient, run: Path) -> None:
    change(run, lambda work: work.execute("UPDATE scores SET value = NULL, reason = 'too few'"))
    text = words_of(page(client))
    assert "no score of any is defined" in text and "too few" in text
    assert "scopenote score" not in text


def test_a_new_state_is_shown_as_soon_as_it_is_published(client: TestClient, run: Path) -> None:
    assert "an explainer of its own" not in page(client)
    change(
        run, lambda work: work.execute("UPDATE labels SET explainer = 'an explainer of its own'")
    )
    assert "an explainer of its own" in page(client)


def test_what_a_person_wrote_counts_at_once(client: TestClient, run: Path) -> None:
    assert "by a person" not in page(client)
    label = Label(
        feature_id=FeatureId(RES, 3),
        text="mine",
        explanation=None,
        explainer="human",
        prompt_version="1",
        window_ids=(),
        source="human",
        author="ada",
    )
    write_to_inbox(run / "inbox", labels=[WrittenLabel.of(label, LATER)])
    text = page(client)
    found = re.search(r'by a person</th>\s*<td class="n"><a href="([^"]*)">1<', text)
    assert found is not None
    assert n_listed(client, unescape(found[1])) == 1


def test_many_saes_are_laid_out_by_layer(client: TestClient, run: Path) -> None:
    change(
        run,
        lambda work: work.execute(
            """
            INSERT INTO saes BY NAME
            SELECT s.* REPLACE ('toy-gemma-2/' || i || '-res-1k' AS sae_id, i::INTEGER AS layer)
            FROM saes s, range(2, 30) t(i) WHERE site = 'res'
            """
        ),
    )
    text = page(client, "/?show=fvu")
    (grid,) = re.findall(r'<table class="grid">.*?</table>', text, flags=re.S)
    assert grid.count("<a ") == 30
    (to,) = re.findall(r'href="([^"]*sae=toy-gemma-2%2F7-res-1k[^"]*)"', grid)
    assert "SAEs" not in words_of(page(client, unescape(to)))[:60]
    shown = re.search(r'aria-current="true">([^<]*)<', text)
    assert shown is not None and shown[1] == "FVU"


def test_what_was_asked_for_last_is_kept() -> None:
    kept: Recent[int] = Recent(2)
    made = []

    def make(value: int) -> int:
        made.append(value)
        return value

    assert [kept.get("a", partial(make, n)) for n in (1, 2)] == [1, 1]
    kept.get("b", partial(make, 3))
    kept.get("a", partial(make, 4))
    kept.get("c", partial(make, 5))
    assert [kept.get(key, partial(make, 6)) for key in "acb"] == [1, 5, 6]
    assert made == [1, 3, 5, 6]
