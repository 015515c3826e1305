"""A dashboard as people have it: the command, and a real Chromium that says what goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

_FLAGS = [
    "--no-sandbox",  # in a container there is nobody else's page
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = (1440, 900), (400, 800)


def chromium() -> str:
    """The browser's program; without one the test is skipped, but where it has to be there."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        if "SCOPENOTE_TESTS_NEED_CHROMIUM" in os.environ:
            pytest.fail("there is no Chromium")
        pytest.skip("there is no Chromium on this machine")
    return found


@contextmanager
def a_browser() -> Iterator[Browser]:
    program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(run: Path, *options: str) -> Iterator[str]:
    """`scopenote serve` at a free port; gives its address, without the slash at the end."""
    words = [sys.executable, "-m", "scopenote.flows.cli", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(
        [*words, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), process.stderr.read()
        yield address.partition("?")[0].rstrip("/")
    finally:
        process.terminate()
        _, complaints = process.communicate(timeout=20)
    assert "Traceback" not in complaints, complaints


@dataclass
class Watched:
    """A page, and what it did that it should not."""

    page: Page
    home: str
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        # Of a page that says 404, as it should, the browser complains too.
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            self.errors.append(message.text)

    def _see(self, request: Request) -> None:
        if not request.url.startswith((f"{self.home}/", "about:", "data:")):
            self.errors.append(f"asked for {request.url}")

    def open(self, path: str) -> Page:
        self.page.goto(self.home + path)
        return self.page

    def assert_fit_for_all(self, *where: str) -> None:
        """No serious finding of axe's, and no page that is wider than its window."""
        found = Axe().run(self.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]})
        serious = [
            (
                self.page.url,
                each["id"],
                each["nodes"][0]["html"],
                each["nodes"][0]["failureSummary"],
            )
            for each in found.response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], where
        assert not self.is_wider_than_the_window(), (self.page.url, where)

    def is_wider_than_the_window(self) -> bool:
        return bool(
            self.page.evaluate(
                "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            )
        )


@contextmanager
def watched(
    browser: Browser, home: str, size: tuple[int, int] = WIDE, scheme: str = "light"
) -> Iterator[Watched]:
    """A page whose errors, at the end, there must be none of."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    found = Watched(page, home)
    try:
        yield found
    finally:
        page.close()
    assert found.errors == []
