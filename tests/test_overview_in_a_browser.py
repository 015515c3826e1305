"""The overview and the runs in a real browser: they lead on, fit, and can be used by everybody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from .browsing import NARROW, WIDE, a_browser, serving, watched
from .dashboards import make_run
from .made_up_run import RES, WIDTH

pytestmark = pytest.mark.slow

PAGES = ["/", "/?site=mlp&explainer=token_lookup", "/?site=nowhere", "/runs", "/runs/r2"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


# More SAEs than a table has room for, so that the grid is there too.
MORE_SAES = """
    INSERT INTO saes BY NAME
    SELECT s.* REPLACE ('toy-gemma-2/' || i || '-res-1k' AS sae_id, i::INTEGER AS layer)
    FROM saes s, range(2, 30) t(i) WHERE site = 'res'
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = make_run(tmp_path_factory.mktemp("overview") / "run", MORE_SAES)
    with serving(run) as address:
        yield address


@pytest.fixture(scope="module")
def unlabelled_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("unlabelled") / "run"
    with serving(make_run(folder, "DELETE FROM scores", "DELETE FROM labels")) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_pages_are_accessible_and_fit_the_window(
    browser: Browser,
    home: str,
    unlabelled_home: str,
    size: tuple[int, int],
    scheme: str,
) -> None:
    for address, paths in ((home, PAGES), (unlabelled_home, ["/"])):
        with watched(browser, address, size, scheme) as view:
            for path in paths:
                page = view.open(path)
                page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
                view.assert_fit_for_all()


def test_a_dot_leads_to_its_feature(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open("/")
        dot = page.locator(f'a.dot[href="/{RES}/0"]')
        said = dot.locator("title").text_content() or ""
        assert said.startswith(f"{RES}/0: score ")
        dot.locator("circle").dispatch_event("click")
        page.wait_for_url(f"**/{RES}/0")


def test_a_bar_can_be_followed_by_keyboard(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open("/")
        bar = page.locator("figure svg a").first
        n = re.search(r"(\d+)$", bar.get_attribute("aria-label") or "")
        bar.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/features?*")
        assert n is not None
        assert page.locator("tbody tr").count() == int(n[1])


def test_filters_are_chosen_and_stay_in_the_address(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = view.open("/")
        page.get_by_label("site").select_option("mlp")
        page.get_by_role("button", name="Filter").click()
        page.wait_for_url("**/?*site=mlp*")
        assert page.get_by_label("site").input_value() == "mlp"
        assert page.locator(".coverage td a").first.inner_text().split() == [str(WIDTH), "features"]
