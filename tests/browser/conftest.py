"""A headless Chromium over the built book; what it may not load is refused and remembered."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

BUILT = Path(__file__).parents[2] / "book" / "_build"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``name`` once for each page of the table of contents."""
    if "name" in metafunc.fixturenames:
        listed = BUILT / "pages.json"
        names = json.loads(listed.read_text()) if listed.is_file() else ["no page: run make book first"]
        metafunc.parametrize("name", names)


@pytest.fixture(scope="session")
def html() -> Path:
    assert (BUILT / "pages.json").is_file(), "the book is not built: run make book first"
    return BUILT / "html"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        told = "no Chromium found: apt-get install chromium, or set CHROMIUM to its path"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


class Visit:
    """One tab that walks through the book; ``wrong`` lists what went wrong on the page it stands on."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.set_default_timeout(120_000)  # a page takes a second; a busy machine is no reason to fail
        self.wrong: list[str] = []
        page.on("console", lambda line: line.type == "error" and self.wrong.append(f"console: {line.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))
        page.route(lambda address: not address.startswith(("file:", "data:", "blob:")), self._refuse)

    def _refuse(self, route: Route) -> None:
        self.wrong.append(f"left the book: {route.request.url}")
        route.abort()

    def __call__(self, width: int) -> Visit:
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme="light")
        return self

    def open(self, path: Path, query: str = "") -> Page:
        """Open a page of the book and wait until its formulas are drawn."""
        self.wrong.clear()
        self.page.goto(path.as_uri() + query, wait_until="load")
        self.page.evaluate("window.MathJax?.startup?.promise?.then(() => true)")
        return self.page


@pytest.fixture(scope="session")
def visit(chromium: Browser) -> Visit:
    """Return the tab: ``visit(390).open(html / "index.html")`` is a phone on the front page."""
    return Visit(chromium.new_page())
