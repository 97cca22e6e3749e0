"""Traces in pages that need no network, drawn by the viewer in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened
from playwright.sync_api import Browser, expect

from stagebeam.evaluation.cases import Case, choose
from stagebeam.evaluation.report import data_uri, write_report
from stagebeam.evaluation.results import Results
from stagebeam.evaluation.trace_page import json_in_html, trace_page, viewer_script, viewer_state
from stagebeam.search.trace import MatchTrace, RetraceTrace, Trace

ATTACK = "</script><script>document.title='owned'</script><!--<script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def case(report_parts: tuple[Results, list[Case]]) -> Case:
    return choose(report_parts[1], 1)[0]


def everywhere(trace: Trace, text: str) -> Trace:
    """The trace with `text` wherever somebody could have written it."""
    data = trace.model_dump(mode="json")
    data["conclusion"] = data["text"] = text
    data["problems"] = [text]
    for message in data["messages"]:
        message["text"] = text
    for stage in data["stages"]:
        for candidate in stage["candidates"]:
            candidate["text"] = text
        for match in stage["matches"]:
            match["explanation"] = text
    return Trace.model_validate_json(json.dumps(data))


@pytest.mark.parametrize("text", [ATTACK, "\u2028\u2029 & &amp; <!--", "\N{GRINNING FACE} \\u003c"])
def test_json_in_a_page_neither_ends_its_element_nor_changes(text: str) -> None:
    embedded = json_in_html({"text": text})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {"text": text}


def test_the_state_that_is_drawn_is_the_trace(case: Case) -> None:
    state = viewer_state(case.trace)
    assert Trace.model_validate_json(json.dumps(state)) == case.trace


def test_the_viewer_knows_no_network_and_never_makes_markup_of_text() -> None:
    for word in ("fetch", "XMLHttpRequest", "import ", "innerHTML", "insertAdjacent", "</script"):
        assert word not in viewer_script()


def test_a_page_of_its_own_shows_the_trace_from_a_file(
    browser: Browser, case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "trace.html"
    path.write_text(trace_page(case.trace, [data_uri(image) for image in case.images]))
    with opened(browser, path.as_uri()) as page:
        expect(page.locator(".sb-conclusion")).to_have_text(case.trace.conclusion or "")
        expect(page.locator("h1")).to_have_text(case.trace.messages[-1].text)
        assert page.locator(".asked img").evaluate("image => image.naturalWidth") > 0
        for column, stage in zip(page.locator(".sb-stage").all(), case.trace.stages, strict=True):
            expect(column.locator(".sb-won .sb-number")).to_have_text(f"#{stage.winner + 1}")
            expect(column.locator(".sb-candidate")).to_have_count(len(stage.candidates))


def test_what_was_written_into_a_trace_stays_text_in_its_page(
    browser: Browser, case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "trace.html"
    path.write_text(trace_page(everywhere(case.trace, ATTACK)))
    with opened(browser, path.as_uri()) as page:
        expect(page.locator(".sb-conclusion")).to_have_text(ATTACK)
        expect(page.locator(".sb-text").first).to_have_text(ATTACK)
        assert (
            page.title() != "owned" and page.locator(".sb-view img, .sb-view script").count() == 0
        )


def test_every_way_to_lose_to_go_back_and_to_be_cut_can_be_read(
    browser: Browser, case: Case, tmp_path: Path
) -> None:
    stage = case.trace.stages[2]
    texts = [stage.candidates[i].model_copy(update={"index": i}) for i in range(4)]
    candidates = (
        texts[0].model_copy(update={"score": -3.25, "parent": 1, "merged_into": None}),
        texts[1].model_copy(update={"merged_into": 0}),
        texts[2].model_copy(update={"valid": False, "finish": "length", "merged_into": None}),
        texts[3].model_copy(update={"merged_into": None}),
    )
    even: dict[str, Any] = {"a": 0, "b": 3, "winner": 0, "margin": 0.0}
    even |= {"forward": 0.0, "backward": 0.0}
    matches = (
        MatchTrace(round=1, decided_by="majority", explanation="Both count alike.", **even),
        MatchTrace(round=2, decided_by="logprob", **even),
        MatchTrace(round=0, decided_by="rule", **even | {"b": 2}),
    )
    trace = case.trace.model_copy(
        update={
            "stages": (
                *case.trace.stages[:2],
                stage.model_copy(
                    update={"candidates": candidates, "matches": matches, "winner": 0}
                ),
                case.trace.stages[3].model_copy(update={"stage": "REST"}),
            ),
            "retraces": (
                RetraceTrace(stage="REASONING", back_to="CAPTION", best=-9.5, cutoff=-4.0),
                RetraceTrace(stage="REASONING", back_to="CAPTION", best=None, cutoff=-4.0),
            ),
            "limited": "tokens",
            "conclusion": None,
            "problems": ("CONCLUSION missing",),
        }
    )
    path = tmp_path / "trace.html"
    path.write_text(trace_page(trace))
    with opened(browser, path.as_uri(), viewport={"width": 1300, "height": 900}) as page:
        shown = page.locator('[data-stage="REASONING"]')
        for text in (
            "score \N{MINUS SIGN}3.25",
            "continues #2",
            "written 2 times",
            "the same as #1",
            "tags broken: loses by rule",
            "cut off",
            "a tie; more votes",
            "a tie; likelier text",
            "by rule",
            "Both count alike.",
            "round 2",
            "Went back to Caption: best score \N{MINUS SIGN}9.50, needed \N{MINUS SIGN}4.00.",
            "Went back to Caption: nothing had its tags, needed \N{MINUS SIGN}4.00.",
        ):
            expect(shown).to_contain_text(text)
        notes = page.locator(".sb-notes")
        expect(notes).to_contain_text("Cut short: the answer's limit of tokens was reached.")
        expect(notes).to_contain_text("Not a whole staged answer: CONCLUSION missing.")
        expect(page.locator(".sb-conclusion")).to_have_text("There is no conclusion.")
        expect(page.locator('[data-stage="CONCLUSION"] .sb-status')).to_have_text("not reached")
        expect(page.locator('[data-stage="REST"]')).to_be_visible()


def test_the_report_draws_its_traces_without_a_network(
    browser: Browser, report_parts: tuple[Results, list[Case]], tmp_path: Path
) -> None:
    results, cases = report_parts
    shown = choose(cases)
    path = write_report(results, cases, tmp_path)
    with opened(browser, path.as_uri(), viewport={"width": 1300, "height": 900}) as page:
        expect(page.locator(".sb-view")).to_have_count(len(shown))
        for article, each in zip(page.locator("article.case").all(), shown, strict=True):
            winners = article.locator(".sb-won .sb-number").all_inner_texts()
            assert winners == [f"#{stage.winner + 1}" for stage in each.trace.stages]
        hostile = replace(shown[0], trace=everywhere(shown[0].trace, ATTACK))
        page.goto(write_report(results, [hostile], tmp_path / "hostile").as_uri())
        expect(page.locator(".sb-won .sb-text").first).to_have_text(ATTACK)
        assert page.title() != "owned"
