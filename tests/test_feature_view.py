"""The page of a feature: what stands on it, that it is harmless, and what its address may ask."""

from __future__ import annotations

import html
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from scopenote.flows.visible_text import visible
from scopenote.store.database import open_store
from scopenote.store.feature_history import (
    labels_of,
    read_label_records,
    read_left_in_force,
    read_votes,
)
from scopenote.store.feature_labels import read_feature_labels
from scopenote.store.inbox import Vote, write_to_inbox
from scopenote.store.label_provenance import read_provenance
from scopenote.store.label_scores import read_label_scores
from scopenote.store.records import Call, FeatureId
from scopenote.store.shown_simulations import read_shown_simulations

from .made_up_pages import (
    FAILED_WINDOW,
    FEATURE,
    HOSTILE,
    IN_FORCE,
    JUDGE,
    PATH,
    RIVAL,
    SCORED_WINDOW,
    Browser,
    publish_made_up,
)
from .made_up_run import FAILED, NEVER_ACTIVE, RES, UNDEFINED, WIDTH

ID = FeatureId(RES, FEATURE)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Call]:
    folder = tmp_path_factory.mktemp("pages")
    return folder, publish_made_up(folder)


@pytest.fixture(scope="module")
def run(published: tuple[Path, Call]) -> Path:
    return published[0]


@pytest.fixture
def browser(run: Path) -> Browser:
    return Browser(run)


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = page[page.index("<main") : page.index("</main>")]
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", body).split()))


def windows_of(page: str) -> list[str]:
    return re.findall(r'<p class="text.*?</p>', page, re.DOTALL)


def test_the_label_in_force_stands_large_with_all_that_is_known_of_its_score(
    browser: Browser,
) -> None:
    answer = browser.get()
    assert answer.status_code == 200
    heading = re.search(r"<h1.*?>(.*?)</h1>", answer.text, re.DOTALL)
    assert heading is not None
    assert html.unescape(heading[1]) == visible(HOSTILE)
    shown = text_of(answer.text)
    for words in (
        "by highlighted, gpt-4o-mini",
        "0.62",
        "interval 0.50 to 0.70",
        "null 0.25",
        "lift 0.38 0.30 to 0.40",
        "select 0.88",
        "another’s label 0.03",
        "one line another",
    ):
        assert words in shown


def test_rivals_stand_below_with_their_own_scores(browser: Browser) -> None:
    shown = text_of(browser.get().text)
    rival = shown[shown.index("Other labels") : shown.index("How a model made it")]
    assert "by token_lookup" in rival
    assert "lift – the simulator is the null itself" in rival
    assert "select 0.30" in rival


def test_other_scores_say_what_they_are_or_why_there_are_none(browser: Browser) -> None:
    shown = text_of(browser.get().text)
    assert "detection auroc random score 0.75 overtaken since 2026-11-21 06:00 UTC" in shown
    assert "fuzzing auroc random score undefined: no positives left" in shown
    assert "weakest first score 0.12 –" in shown


def test_nothing_hostile_is_anything_but_text(browser: Browser) -> None:
    for query in ("", "?split=score&kind=sample", f"?made={IN_FORCE}"):
        page = browser.get(PATH + query).text
        scripts = re.findall(r"<script[^>]*>", page)
        assert all(' src="/static/' in each for each in scripts)
        assert "49evil" not in page
        assert not re.search(r"[\u202e\x1b\x07\u200b]", page)
        assert " style=" not in page


def test_contexts_are_shaded_by_what_the_feature_does(browser: Browser) -> None:
    page = browser.get().text
    assert "75–100% of the peak" in text_of(page)
    windows = windows_of(page)
    assert len(windows) == 12
    assert '<span class="k a10"' in windows[0]
    # The first window holds every piece there is: newlines, tabs, bells and turned directions.
    assert all(sign in "".join(windows) for sign in ("⏎", "⇥", "␇", "⟨202E⟩", "⟨200B⟩"))
    assert " s1" not in page


def test_contexts_of_score_open_only_on_a_click_that_is_remembered(run: Path) -> None:
    browser = Browser(run)
    page = browser.get(PATH).text
    assert "Opening score" in text_of(page)
    assert not browser.client.cookies
    opened = browser.get(f"{PATH}?split=score&kind=sample")
    cookie = opened.headers["set-cookie"]
    assert cookie.startswith("saw_score=1;")
    assert f"Path={PATH}" in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert "have seen" in text_of(browser.get(PATH).text)
    other = browser.get(f"/{RES}/4").text
    assert "have seen" not in text_of(other)
    # What begins like its address is another feature's.
    assert "have seen" not in text_of(browser.get(f"/{RES}/30").text)


def test_simulated_activations_lie_over_the_true_ones(browser: Browser) -> None:
    page = browser.get(f"{PATH}?split=score&kind=sample").text
    strong, weak = windows_of(page)
    assert re.search(
        r'<span class="k a9 s10" title="“.*?” true 20.00, simulated 9.00 of 9">', strong
    )
    assert "simulated" not in weak
    assert "not simulated: no ratings came" in text_of(page)
    assert 'id="shade-both"' in page
    assert f"Simulated by {JUDGE} under" in text_of(page)


def test_where_nothing_is_simulated_the_page_says_so(browser: Browser) -> None:
    assert "No simulated activations here" in text_of(browser.get().text)
    assert "No simulated activations are stored" in text_of(
        browser.get(f"{PATH}?split=select").text
    )
    assert "shade-both" not in browser.get().text


def test_the_exact_prompt_and_reply_are_shown(
    browser: Browser, published: tuple[Path, Call]
) -> None:
    _, call = published
    page = browser.get(f"{PATH}?made={IN_FORCE}").text
    shown = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    sent = [message["content"] for message in call.request["messages"]]
    for content, pre in zip(sent, shown, strict=False):
        assert html.unescape(pre) == "\n".join(map(visible, content.split("\n")))
    assert '"temperature": 0.7' in html.unescape(shown[-2])
    assert '"finish_reason": "stop"' in html.unescape(shown[-1])
    assert f"scopenote replay {browser.site.run} {IN_FORCE}" in text_of(page)
    assert "contexts left out for length 4" in text_of(page)


def test_history_has_all_labels_and_what_runs_left_in_force(browser: Browser) -> None:
    shown = text_of(browser.get().text)
    history = shown[shown.index("History") :]
    assert "its contexts changed again, 2 in force" in history
    assert "demo r1" in history and "0.41 token_lookup" in history


def test_neighbours_lead_on_and_keys_go_to_the_features_beside_it(browser: Browser) -> None:
    page = browser.get().text
    assert f'data-key="j" href="/{RES}/4"' in page
    assert f'data-key="k" href="/{RES}/2"' in page
    assert f'<a href="/{RES}/7">7</a>' in page
    assert 'data-key="k"' not in browser.get(f"/{RES}/0").text
    assert 'data-key="j"' not in browser.get(f"/{RES}/{WIDTH - 1}").text


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (NEVER_ACTIVE, "No label: never active in this text"),
        (FAILED, "No label: never active in explain"),
        (UNDEFINED, "undefined: too few active tokens"),
    ],
)
def test_what_there_is_not_is_said_with_its_reason(
    browser: Browser, feature: int, words: str
) -> None:
    answer = browser.get(f"/{RES}/{feature}")
    assert answer.status_code == 200
    assert words in text_of(answer.text)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"/{RES}/{WIDTH}", f"{RES}/{WIDTH - 1}"),
        (f"/{RES}/{'9' * 5000}", "no feature of this number"),
        (f"/{RES}/99999999999", f"{RES}/{WIDTH - 1}"),
        (f"/{RES}/3%00", "not a feature"),
        (f"/{RES}/-1", "not a feature"),
        (f"/{RES}/3'%20OR%201=1", "not a feature"),
        ("/toy-gemma-2/nothing/3", "no such SAE"),
        ("/..%2f../etc/passwd", "Not Found"),
        ("/%2e%2e/etc/passwd", "no such SAE"),
        ("/%F0%28/%00/%FF", "no such SAE"),
    ],
)
def test_an_unknown_feature_is_a_helpful_404(browser: Browser, path: str, words: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 404
    assert words in text_of(answer.text)


@pytest.mark.parametrize(
    "query", ["split=test", "kind=x", "under=" + "x" * 101, "other=1", "split=score&split=x"]
)
def test_an_address_that_asks_for_what_there_is_not_is_refused(
    browser: Browser, query: str
) -> None:
    assert browser.get(f"{PATH}?{query}").status_code == 422


def test_labels_and_simulators_that_are_unknown_are_passed_over(browser: Browser) -> None:
    query = "split=score&kind=sample&under=%00';--&by=nobody&made=nothing"
    assert "Simulated by chat/m" in text_of(browser.get(f"{PATH}?{query}").text)


def test_a_feature_has_one_address(browser: Browser) -> None:
    answer = browser.get(f"/{RES}/007?split=select", follow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["location"] == f"/{RES}/7?split=select"


def test_who_only_reads_is_shown_no_forms(run: Path) -> None:
    page = Browser(run, is_read_only=True).get().text
    assert 'method="post"' not in page
    assert "form_secret" not in page


def test_where_the_model_is_at_hand_the_feature_can_be_tried(run: Path) -> None:
    assert 'id="try-text"' not in Browser(run).get().text
    page = Browser(run, with_model=True).get().text
    assert 'id="try-text"' in page and f'action="{PATH}/try#result"' in page


def test_votes_and_labels_are_the_same_as_the_terminal_reads(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    at = datetime(2026, 11, 22, tzinfo=UTC)
    votes = [Vote(IN_FORCE, "ada", 1, at), Vote(IN_FORCE, "bob", -1, at), Vote(RIVAL, "ada", 0, at)]
    write_to_inbox(tmp_path / "run" / "inbox", votes=votes)
    with open_store(tmp_path / "run") as store, store.cursor() as connection:
        records = read_label_records(connection, ID)
        counted = read_votes(connection, [each.label_id for each in records], "bob")
        assert counted[IN_FORCE].own == -1
        expected = read_feature_labels(connection, ID)
        assert labels_of(records, IN_FORCE, counted) == expected
        assert (expected.in_force and expected.in_force.n_up, counted[IN_FORCE].n_down) == (1, 1)


def test_what_the_page_is_made_of_is_read_by_label(run: Path, published: tuple[Path, Call]) -> None:
    with open_store(run) as store, store.cursor() as connection:
        records = {each.label_id: each for each in read_label_records(connection, ID)}
        assert set(records) == {IN_FORCE, RIVAL}
        assert [each.label_id for each in read_left_in_force(connection, ID)] == [RIVAL]
        scores = read_label_scores(connection, list(records))
        assert [scores[key][0].is_headline for key in (IN_FORCE, RIVAL)] == [True, True]
        assert read_label_scores(connection, []) == {}
        made = read_provenance(connection, records[IN_FORCE])
        assert made is not None and made.call == published[1]
        assert read_provenance(connection, records[RIVAL]) is None
        windows = [SCORED_WINDOW, FAILED_WINDOW, 99]
        (found,) = read_shown_simulations(connection, [IN_FORCE], windows)
        assert (found.simulator, set(found.predicted)) == (JUDGE, {SCORED_WINDOW})
        assert found.failures == {FAILED_WINDOW: "no ratings came"}
        assert read_shown_simulations(connection, [RIVAL], windows) == ()
