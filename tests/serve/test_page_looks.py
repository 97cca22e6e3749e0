"""How the page looks and can be used: keyboard, phone, contrast, motion."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened, screenshot
from page_asking import DESKTOP, PHONE, answered, ask
from page_world import QUESTION, World, page_server, picture
from playwright.sync_api import Browser, expect

from stagebeam.stages import Stage


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def test_the_page_can_be_used_with_the_keyboard_alone(browser: Browser) -> None:
    with page_server(World()) as url, opened(browser, url, **DESKTOP) as page:
        expect(page.locator("#model")).to_have_text("balls")

        def tab_to(selector: str) -> None:
            for _ in range(30):
                page.keyboard.press("Tab")
                if page.evaluate("s => document.activeElement.matches(s)", selector):
                    break
            else:
                pytest.fail(f"Tab does not lead to {selector}")
            shown = page.evaluate(
                """s => {
                  const active = document.activeElement;
                  const seen = active.matches(".unseen") ? active.nextElementSibling : active;
                  return getComputedStyle(seen).outlineStyle;
                }""",
                selector,
            )
            assert shown == "solid", f"the focus on {selector} cannot be seen"

        tab_to("#image")
        tab_to("#question")
        page.keyboard.type(QUESTION)
        tab_to("#settings summary")
        page.keyboard.press("Enter")
        tab_to("#candidates")
        page.keyboard.press("ArrowDown")
        tab_to("#ask")
        page.keyboard.press("Enter")
        answered(page)
        expect(page.locator(".sb-facts")).to_contain_text("N = 3")
        page.evaluate("document.activeElement.blur()")
        tab_to(".sb-fold summary")
        page.keyboard.press("Enter")
        expect(page.locator(".sb-fold").first).not_to_have_attribute("open", "")
        tab_to(".actions a")
        tab_to(".actions button")


def test_on_a_phone_columns_become_a_list_that_fits(browser: Browser, tmp_path: Path) -> None:
    with page_server(World(pace=0.1)) as url, opened(browser, url, **PHONE) as page:
        too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.evaluate(too_wide)
        ask(page, image=picture())
        answered(page)
        assert not page.evaluate(too_wide)
        boxes = [column.bounding_box() for column in page.locator(".sb-stage").all()]
        assert all(a["y"] + a["height"] <= b["y"] for a, b in pairwise(boxes))  # type: ignore[index]
        screenshot(page, "page-phone", tmp_path, whole=False)
        sizes = page.locator("button:visible").evaluate_all("all => all.map(b => b.offsetHeight)")
        assert min(sizes) >= 44


def test_a_long_word_does_not_make_the_page_wider(browser: Browser) -> None:
    world = World(said="W" * 300)
    with page_server(world) as url, opened(browser, url, **PHONE) as page:
        ask(page, "Q" * 300)
        answered(page)
        assert not page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )


def luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_stand_out_in_light_and_dark(
    browser: Browser, tmp_path: Path, scheme: Any
) -> None:
    with (
        page_server(World()) as url,
        opened(browser, url, **DESKTOP, color_scheme=scheme) as page,
    ):
        ask(page, image=picture())
        answered(page)
        if scheme == "dark":
            screenshot(page, "page-dark", tmp_path)

        def colour(name: str) -> str:
            return str(
                page.evaluate(
                    "n => getComputedStyle(document.documentElement).getPropertyValue(n).trim()",
                    f"--sb-{name}",
                )
            )

        for ground in ("paper", "card", "lit"):
            for text in ("ink", "soft", "accent"):
                assert contrast(colour(text), colour(ground)) >= 4.5, (text, ground)
        for ground in ("paper", "card"):
            assert contrast(colour("edge"), colour(ground)) >= 3, ("edge", ground)
        assert contrast(colour("on-accent"), colour("accent")) >= 4.5
        assert contrast(colour("bad"), colour("bad-lit")) >= 4.5
        assert contrast(colour("bad"), colour("card")) >= 4.5
        # The variables are what is painted.
        painted = page.locator(".sb-lost .sb-text").first.evaluate("e => getComputedStyle(e).color")
        red, green, blue = (int(colour("soft")[i : i + 2], 16) for i in (1, 3, 5))
        assert painted == f"rgb({red}, {green}, {blue})"


def test_nothing_moves_for_who_asked_for_less_motion(browser: Browser) -> None:
    world = World(hold=(Stage.SUMMARY, 1))
    with (
        page_server(world) as url,
        opened(browser, url, **DESKTOP, reduced_motion="reduce") as page,
    ):
        ask(page)
        expect(page.locator(".sb-waiting").first).to_be_visible()
        assert page.evaluate("document.getAnimations().length") == 0
        page.click("#stop")
