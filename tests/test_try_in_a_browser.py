"""A feature tried in a real browser, on the model that the command was told to have at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from .asking_runs import rows
from .browsing import NARROW, WIDE, Watched, a_browser, serving, watched

pytestmark = pytest.mark.slow

SAE = "toy-gemma-2/1-res-1k"
TEXT = "class Reader:\n    def read(self):\n\treturn self.text  # <b>\u202e</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def home(collected: Path) -> Iterator[str]:
    with serving(collected, "--with-model", "--read-only") as address:
        yield address


@pytest.fixture(scope="module")
def path(collected: Path) -> str:
    ((feature,),) = rows(
        collected,
        f"SELECT feature FROM features WHERE sae_id = '{SAE}' ORDER BY n_active DESC LIMIT 1",
    )
    return f"/{SAE}/{feature}/try"


def assert_sound(view: Watched, page: Page) -> None:
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]})
    assert [each["id"] for each in found.response["violations"]] == []
    assert not view.is_wider_than_the_window()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_text_is_shaded_then_steered_and_a_wrong_number_is_answered_beside_its_field(
    browser: Browser, home: str, path: str, size: tuple[int, int], scheme: str
) -> None:
    with watched(browser, home, size, scheme) as view:
        page = view.open(path)
        strength = page.get_by_label("strength", exact=True)
        expect(strength).to_be_hidden()
        page.get_by_label("Your text").fill(TEXT)
        page.get_by_role("button", name="Try").click()
        assert page.locator(".text .t[title]").count() > 1
        assert "<b>⟨202E⟩</b>" in page.locator("#result .text").inner_text()
        assert_sound(view, page)

        page.get_by_label("what the model writes next").check()
        expect(strength).to_be_visible()
        strength.fill("30")
        page.get_by_label("seed").fill("3")
        page.get_by_role("button", name="Try").click()
        plain, steered = page.locator(".sides .text").all_inner_texts()
        assert plain != steered
        assert page.get_by_label("Your text").input_value() == TEXT
        assert_sound(view, page)

        strength.fill("much")
        page.get_by_role("button", name="Try").click()
        assert page.get_by_role("alert").inner_text().startswith("A number from")
        assert_sound(view, page)


def test_enter_in_a_field_tries_too_and_the_keyboard_reaches_the_text(
    browser: Browser, home: str, path: str
) -> None:
    with watched(browser, home) as view:
        page = view.open(path)
        page.keyboard.press("t")
        page.keyboard.type("The function returns")
        page.get_by_label("what the model writes next").check()
        page.get_by_label("tokens").fill("4")
        page.get_by_label("tokens").press("Enter")
        assert page.locator(".sides .text").count() == 2
