"""The dashboard in a real browser: what a person does, sees, and cannot be tricked into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from .asking_runs import command
from .browsing import NARROW, WIDE, a_browser, serving, watched
from .dashboards import make_run
from .made_up_pages import PATH, publish_made_up
from .made_up_run import RES

pytestmark = pytest.mark.slow

LISTS = ["/features", "/features?queue=worst", "/features?q=zzzz", "/nothing/here/1"]
HOSTILE = [
    '<script>window.taken = 1</script><img src=x onerror="window.taken=1">',
    "{{ 7 * 7 }} {% raise %} ${7*7} <%= 7*7 %>",
    "\u202eright to left\u202c \u2066isolate\u2069 \u200bzero\u200d",
    "giant" * 400,
    "'; DROP TABLE labels; --",
    '"></a><svg onload=window.taken=1>',
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = make_run(tmp_path_factory.mktemp("browsed") / "run")
    with serving(run) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_pages_are_accessible_fit_the_window_and_ask_for_nothing_elsewhere(
    browser: Browser, home: str, size: tuple[int, int], scheme: str
) -> None:
    with watched(browser, home, size, scheme) as view:
        for path in LISTS:
            view.open(path)
            view.assert_fit_for_all()


def test_hostile_text_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    statements = [
        f"UPDATE labels SET text = {_quoted(text)}, explanation = {_quoted(text)} "
        f"WHERE sae_id = '{RES}' AND feature = {feature}"
        for feature, text in enumerate(HOSTILE)
    ]
    run = make_run(tmp_path / "run", *statements)
    with serving(run) as home:
        for size in (WIDE, NARROW):
            with watched(browser, home, size) as view:
                page = view.open(f"/features?sae={RES}")
                shown = page.locator("td.label").all_inner_texts()
                assert shown[0] == HOSTILE[0]
                assert shown[1] == HOSTILE[1]
                assert "\u202e" not in page.content()
                assert "⟨202E⟩right to left" in shown[2]
                assert shown[4] == HOSTILE[4]
                for path in ("", "/", *(f"/{RES}/{n}" for n in range(len(HOSTILE)))):
                    page = view.open(path) if path else page
                    assert page.evaluate("window.taken") is None
                    assert "\u202e" not in page.content()
                    assert page.locator("main script, main img, main [onload]").count() == 0
                    assert not view.is_wider_than_the_window(), path


def test_a_slash_goes_to_the_search_and_finds(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open("/features")
        page.keyboard.press("/")
        page.keyboard.type("parser")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=parser*")
        assert all("parser" in text for text in page.locator("td.label").all_inner_texts())


def test_a_list_is_filtered_and_sorted_by_its_address_alone(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open("/features")
        page.fill("[name=min_score]", "0.5")
        page.click("button:has-text('Filter')")
        page.click("thead a:has-text('score')")
        assert "min_score=0.5" in page.url and "sort=score" in page.url
        scores = [float(each) for each in page.locator("tbody td:nth-child(3)").all_inner_texts()]
        assert scores == sorted(scores, reverse=True) and min(scores) >= 0.5
        again = view.open(page.url.removeprefix(home))
        assert [
            float(each) for each in again.locator("tbody td:nth-child(3)").all_inner_texts()
        ] == scores


def test_a_visit_from_the_overview_by_a_dot_to_a_label_in_force(
    browser: Browser, tmp_path: Path
) -> None:
    publish_made_up(tmp_path)
    with serving(tmp_path, "--author", "ada") as home, watched(browser, home) as view:
        page = view.open("/")
        page.locator(f"a.dot[href='{PATH}']").first.click(force=True)
        page.wait_for_url(f"**{PATH}")
        page.get_by_role("navigation", name="Split").get_by_role("link", name="score").click()
        page.get_by_role("link", name="at random").click()
        before = page.locator(".windows .text").first.screenshot()
        page.check("#shade-simulated")
        assert page.locator(".windows .text").first.screenshot() != before
        page.keyboard.press("l")
        page.keyboard.type("what a person saw here")
        page.click("text=Save label")
        assert page.inner_text("h1") == "what a person saw here"
        page.locator(".in-force .votes button").first.click()
        page.wait_for_selector(".in-force .votes button[aria-pressed=true]")

        # It is in force wherever one looks: in lists, in the overview, for programs, for commands.
        page = view.open("/features?labelled=human")
        assert page.locator("td.label").all_inner_texts() == ["what a person saw here"]
        assert "by a person" in view.open("/").inner_text("main")
        found = page.request.get(f"{home}/api/features?labelled=human").json()["features"]
        assert [(each["author"], each["n_up"]) for each in found] == [("ada", 1)]
        shown = command("show", tmp_path, PATH.strip("/"))
        assert "what a person saw here" in shown.stdout


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
