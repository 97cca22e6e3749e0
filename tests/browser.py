"""A headless Chromium for tests, that fails a test for what it would not show."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = ("127.0.0.1", "localhost", None)  # None: data: and blob:
SCREENSHOTS = os.environ.get("STAGEBEAM_SCREENSHOTS")  # a folder, docs/images to renew those


@contextmanager
def chromium() -> Iterator[Browser]:
    """Raises pytest's failure with the command that installs it, where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("These tests need Chromium: sudo apt-get install --yes chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, expected: tuple[str, ...] = (), **options: Any) -> Any:
    """A page at `url` in a context of its own.

    Fails at the end if it asked another machine for anything, or if its console has an error that
    is not among `expected` (parts of what they say).
    """
    asked: list[str] = []
    errors: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    try:
        page.goto(url)
        yield page
        assert [each for each in asked if urlsplit(each).hostname not in LOCAL] == []
        assert [e for e in errors if not any(part in e for part in expected)] == []
    finally:
        context.close()


def screenshot(page: Page, name: str, folder: Path, *, whole: bool = True) -> None:
    """Into `folder`, or where STAGEBEAM_SCREENSHOTS says."""
    path = Path(SCREENSHOTS or folder) / f"{name}.png"
    page.screenshot(path=path, full_page=whole, animations="disabled")
