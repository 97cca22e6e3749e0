"""Asking on the page, as the tests of it do."""

from __future__ import annotations

from typing import Any

from page_world import QUESTION
from playwright.sync_api import Page, expect

DESKTOP = {"viewport": {"width": 1360, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def ask(page: Page, question: str = QUESTION, image: bytes | None = None) -> None:
    if image is not None:
        file: Any = {"name": "balls.png", "mimeType": "image/png", "buffer": image}
        page.set_input_files("#image", file)
        expect(page.locator("#preview")).to_be_visible()
    page.fill("#question", question)
    page.click("#ask")


def answered(page: Page) -> None:
    expect(page.locator(".sb-conclusion").last).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()
