"""A feature's page in a real browser: shades, keys, labels and votes, for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from .browsing import NARROW, WIDE, a_browser, serving, watched
from .made_up_pages import IN_FORCE, PATH, publish_made_up
from .made_up_run import FAILED, NEVER_ACTIVE, RES

pytestmark = pytest.mark.slow

SCORED = f"{PATH}?split=score&kind=sample"
PAGES = [PATH, SCORED, f"{PATH}?made={IN_FORCE}", f"/{RES}/{NEVER_ACTIVE}", f"/{RES}/{FAILED}"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture
def home(tmp_path: Path) -> Iterator[str]:
    publish_made_up(tmp_path)
    with serving(tmp_path) as address:
        yield address


def ground(page: Page, place: str) -> str:
    """The colour behind what stands at this place."""
    script = "element => getComputedStyle(element).backgroundColor"
    return str(page.locator(place).first.evaluate(script))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_page_is_accessible_and_fits_the_window(
    browser: Browser, home: str, size: tuple[int, int], scheme: str
) -> None:
    with watched(browser, home, size, scheme) as view:
        for path in PAGES:
            page = view.open(path)
            for summary in page.locator("summary").all():
                summary.click()
            for way in ("#shade-true", "#shade-simulated", "#shade-both"):
                if page.locator(way).count():
                    page.check(way)
                view.assert_fit_for_all(way)


def test_one_click_shades_by_what_was_simulated(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open(SCORED)
        simulated, only_true = ".k.a9.s10", ".k.a1:not(.s10)"
        true = ground(page, simulated)
        assert ground(page, only_true) != "rgba(0, 0, 0, 0)"
        page.check("#shade-simulated")
        assert ground(page, simulated) != true
        assert ground(page, only_true) == "rgba(0, 0, 0, 0)"
        page.keyboard.press("s")
        assert page.is_checked("#shade-both")
        assert ground(page, simulated) == true


def test_tokens_are_walked_with_arrows_and_say_their_values(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open(SCORED)
        page.focus(".windows .text")
        page.keyboard.press("ArrowRight")
        assert "true 20.00, simulated 9.00 of 9" in page.inner_text("#token-values")
        page.keyboard.press("ArrowRight")
        assert "true 1.00, simulated 0.00 of 9" in page.inner_text("#token-values")
        page.keyboard.press("Tab")
        assert page.inner_text("#token-values") == ""


def test_a_label_is_written_and_voted_for_with_keys_alone(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open(PATH)
        page.keyboard.press("l")
        page.keyboard.type("places where it <b>begins</b>")
        page.fill("#author-field", "Ada é")
        page.keyboard.press("Enter")
        page.wait_for_url("**#label")
        assert page.inner_text("h1") == "places where it <b>begins</b>"
        assert "a person, Ada é" in page.inner_text(".in-force .by")
        assert "score" not in page.inner_text(".in-force .by")
        page.locator(".in-force .votes button").first.press("Enter")
        page.wait_for_selector(".in-force .votes button[aria-pressed=true]")
        page.keyboard.press("j")
        page.wait_for_url(f"**/{RES}/4")
        page.keyboard.press("k")
        page.wait_for_url(f"**{PATH}")


def test_a_label_written_after_a_look_at_score_says_so(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open(PATH)
        page.get_by_role("navigation", name="Split").get_by_role("link", name="score").click()
        view.open(PATH)
        page.keyboard.press("l")
        page.keyboard.type("seen")
        page.fill("#author-field", "ada")
        page.click("text=Save label")
        assert "written after seeing score contexts" in page.inner_text(".in-force .by")
        page.click("text=withdraw")
        assert page.inner_text("h1") != "seen"
        view.open(f"/{RES}/4")
        assert page.locator("text=You have seen").count() == 0
