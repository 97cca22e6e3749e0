"""The page in a browser: asking, watching, follow-ups, saved traces, and all that can go wrong."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium, opened, screenshot
from page_asking import DESKTOP, answered, ask
from page_world import KEY, QUESTION, World, page_server, picture
from playwright.sync_api import Browser, Page, expect

from stagebeam.inference.types import Prompt
from stagebeam.recipe import Limits
from stagebeam.records import Message
from stagebeam.search import SearchSettings, Trace, events
from stagebeam.search.event_json import event_to_json
from stagebeam.search.events import Restarted
from stagebeam.stages import Stage

ANSWER = "There are two more red balls than blue ones."
STAGE_NAMES = ["SUMMARY", "CAPTION", "REASONING", "CONCLUSION"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def trace_of(page: Page, url: str) -> Trace:
    reply = httpx.get(f"{url}/v1/traces/{page.url.partition('?trace=')[2]}")
    return Trace.model_validate_json(reply.text)


def test_the_whole_search_can_be_seen_and_the_answer_comes_first(
    browser: Browser, tmp_path: Path
) -> None:
    with page_server(World(pace=0.1)) as url, opened(browser, url, **DESKTOP) as page:
        expect(page.locator("#model")).to_have_text("balls")
        screenshot(page, "page-idle", tmp_path)
        ask(page, image=picture())
        answered(page)
        screenshot(page, "page-done", tmp_path)
        trace = trace_of(page, url)
        assert trace.conclusion == ANSWER and len(trace.image_digests) == 1
        answer = page.locator(".sb-conclusion")
        expect(answer).to_have_text(ANSWER)
        assert answer.bounding_box()["y"] < page.locator(".sb-stages").bounding_box()["y"]  # type: ignore[index]
        columns = page.locator(".sb-stage")
        assert columns.evaluate_all("all => all.map(e => e.dataset.stage)") == STAGE_NAMES
        tops = columns.evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
        assert len(set(tops)) == 1, "four columns stand side by side"
        for column, stage in zip(columns.all(), trace.stages, strict=True):
            expect(column.locator(".sb-candidate")).to_have_count(len(stage.candidates))
            expect(column.locator(".sb-won .sb-number")).to_have_text(f"#{stage.winner + 1}")
            expect(column.locator(".sb-match")).to_have_count(len(stage.matches))
            copies = [c for c in stage.candidates if c.merged_into is not None]
            expect(column.locator(".sb-copy")).to_have_count(len(copies))
        caption = columns.nth(1)
        expect(caption.locator(".sb-bad").first).to_have_text("tags broken: loses by rule")
        expect(caption.locator(".sb-match", has_text="by rule")).to_have_count(1)
        expect(page.locator(".sb-facts")).to_contain_text("stage beam, N = 4, round robin")
        expect(page.locator(".sb-facts")).to_contain_text(
            f"{trace.usage.decode_tokens} tokens written"
        )


def test_a_match_shows_both_orders_as_probabilities_of_the_winner(browser: Browser) -> None:
    with page_server(World()) as url, opened(browser, url, **DESKTOP) as page:
        ask(page)
        answered(page)
        match = trace_of(page, url).stages[2].matches[0]
        assert (match.a, match.b, match.winner) == (0, 1, 0)
        first, second = page.evaluate(
            "([x, y]) => [1 / (1 + Math.exp(-x)), 1 / (1 + Math.exp(-y))]",
            [match.forward, match.backward],
        )
        shown = page.locator('[data-stage="REASONING"] .sb-match').first
        expect(shown.locator(".sb-pair")).to_have_text("#1 over #2")
        expect(shown.locator(".sb-margin")).to_have_text(f"margin +{match.margin:.2f}")
        shares = shown.locator(".sb-share").all_inner_texts()
        assert [int(re.sub(r"\D", "", share)) for share in shares] == [
            round(100 * first),
            round(100 * second),
        ]
        # Where the second one won, its share is what is left, and its orders are turned.
        turned = next(m for m in trace_of(page, url).stages[2].matches if m.winner == m.b)
        row = page.locator('[data-stage="REASONING"] .sb-match').filter(
            has_text=f"#{turned.b + 1} over #{turned.a + 1}"
        )
        shares = row.locator(".sb-share").all_inner_texts()
        expected = page.evaluate(
            "([x, y]) => [1 / (1 + Math.exp(y)), 1 / (1 + Math.exp(x))]",
            [turned.forward, turned.backward],
        )
        assert [int(re.sub(r"\D", "", share)) for share in shares] == [
            round(100 * share) for share in expected
        ]


def test_in_mid_search_the_path_so_far_is_lit_and_the_rest_is_waited_for(
    browser: Browser, tmp_path: Path
) -> None:
    world = World(hold=(Stage.REASONING, 2), pace=0.1)
    with page_server(world) as url, opened(browser, url, **DESKTOP) as page:
        ask(page, image=picture())
        reasoning = page.locator('[data-stage="REASONING"]')
        expect(reasoning.locator(".sb-candidate")).to_have_count(2)
        expect(page.locator(".sb-won")).to_have_count(2)
        expect(reasoning.locator(".sb-waiting")).to_have_count(2)
        expect(page.locator(".sb-progress")).to_have_text("Writing reasonings: 2 of 4")
        expect(page.locator("#status")).to_have_text("Writing reasonings")
        screenshot(page, "page-searching", tmp_path, whole=False)
        world.go_on.set()
        answered(page)
        expect(page.locator("#status")).to_have_text(f"Answer: {ANSWER}")
        expect(page.locator(".sb-waiting")).to_have_count(0)


def test_stopping_cancels_the_search_and_leaves_what_was_seen(browser: Browser) -> None:
    world = World(hold=(Stage.CAPTION, 1))
    with page_server(world) as url, opened(browser, url, **DESKTOP) as page:
        ask(page)
        expect(page.locator('[data-stage="CAPTION"] .sb-candidate')).to_have_count(1)
        page.click("#stop")
        expect(page.locator(".stopped")).to_have_text("Stopped before there was an answer.")
        assert world.cancelled.wait(5), "the generator goes on for a reader who has left"
        expect(page.locator('[data-stage="SUMMARY"] .sb-won')).to_be_visible()
        expect(page.locator("#question")).to_have_value(QUESTION)
        expect(page.locator("#ask")).to_be_enabled()


def test_a_follow_up_carries_the_conversation_and_its_picture(browser: Browser) -> None:
    world = World()
    with page_server(world) as url, opened(browser, url, **DESKTOP) as page:
        ask(page, image=picture())
        answered(page)
        first = trace_of(page, url)
        ask(page, "And how many blue ones?")
        expect(page.locator(".turn")).to_have_count(2)
        answered(page)
        prompt = world.questions[1]
        assert [m.role for m in prompt.messages] == ["user", "assistant", "user"]
        assert prompt.messages[1].text == first.text
        assert prompt.messages[2].text == "And how many blue ones?"
        assert prompt.images == world.questions[0].images == (picture(),)
        page.click("#fresh")
        expect(page.locator(".turn")).to_have_count(0)
        ask(page, "Something else?")
        answered(page)
        assert world.questions[2] == Prompt((Message("user", "Something else?"),))


def test_the_controls_start_from_the_server_and_reach_the_search(browser: Browser) -> None:
    world = World()
    with (
        page_server(world, candidates=3, tournament="chain", seed=9) as url,
        opened(browser, url, **DESKTOP) as page,
    ):
        page.click("#settings summary")
        expect(page.locator("#candidates")).to_have_value("3")
        expect(page.locator("#tournament")).to_have_value("chain")
        expect(page.locator("#seed")).to_have_value("9")
        expect(page.locator('#method option[value="retrace"]')).to_have_count(0)
        page.fill("#candidates", "2")
        page.select_option("#tournament", "bracket")
        page.fill("#temperature", "0.9")
        ask(page)
        answered(page)
        asked = world.settings[0]
        assert (asked.method, asked.candidates, asked.tournament) == ("stage_beam", 2, "bracket")
        assert (asked.temperature, asked.seed) == (0.9, 9)
        page.select_option("#method", "greedy")
        expect(page.locator("#candidates")).to_be_disabled()
        expect(page.locator("#settings-summary")).to_have_text("Greedy, seed 9")


def test_what_the_operator_does_not_allow_is_not_offered(browser: Browser) -> None:
    limits = Limits(methods=("stage_beam", "greedy"), tournaments=("auto", "chain"))
    with page_server(World(), limits=limits) as url, opened(browser, url, **DESKTOP) as page:
        expect(page.locator("#model")).to_have_text("balls")
        for name, allowed in (("method", limits.methods), ("tournament", limits.tournaments)):
            options = page.locator(f"#{name} option").evaluate_all("all => all.map(o => o.value)")
            assert set(options) == set(allowed or ())


def test_a_server_that_shows_no_traces_still_answers_and_goes_on(browser: Browser) -> None:
    world, limits = World(), Limits(traces=False)
    with page_server(world, limits=limits) as url, opened(browser, url, **DESKTOP) as page:
        ask(page)
        answered(page)
        expect(page.locator(".sb-conclusion")).to_have_text(ANSWER)
        expect(page.locator(".sb-stage")).to_have_count(0)
        expect(page.locator(".actions a")).to_have_count(0)
        ask(page, "And how many blue ones?")
        expect(page.locator(".turn")).to_have_count(2)
        answered(page)
        assert ANSWER in world.questions[1].messages[1].text


@pytest.mark.parametrize("method", ["greedy", "majority", "best_of_n", "sentence_beam"])
def test_methods_that_are_not_stagewise_are_drawn_one_decision_below_the_other(
    browser: Browser, method: str
) -> None:
    with page_server(World(), method=method) as url, opened(browser, url, **DESKTOP) as page:
        ask(page)
        answered(page)
        trace = trace_of(page, url)
        expect(page.locator(".sb-columns")).to_have_count(0)
        expect(page.locator(".sb-stage")).to_have_count(len(trace.stages))
        expect(page.locator(".sb-won")).to_have_count(len(trace.stages))
        if method != "sentence_beam":
            labels = page.locator(".sb-won .sb-label").all_inner_texts()
            assert labels == ["Summary", "Caption", "Reasoning", "Conclusion"]


def test_a_link_opens_the_trace_again_and_a_downloaded_one_too(
    browser: Browser, tmp_path: Path
) -> None:
    with page_server(World()) as url, opened(browser, url, **DESKTOP) as page:
        ask(page)
        answered(page)
        trace = trace_of(page, url)
        with page.expect_download() as download:
            page.click("text=Download the trace")
        saved = tmp_path / download.value.suggested_filename
        download.value.save_as(saved)
        assert Trace.model_validate_json(saved.read_text()) == trace
        link = page.get_by_role("link", name="Link to this search").get_attribute("href")
        with opened(browser, f"{url}/{link}", **DESKTOP) as other:
            expect(other.locator(".sb-conclusion")).to_have_text(ANSWER)
            expect(other.locator(".asked h2")).to_have_text(QUESTION)
        with opened(browser, url, **DESKTOP) as other:
            other.set_input_files("#trace-file", saved)
            expect(other.locator(".sb-conclusion")).to_have_text(ANSWER)
            lines = tmp_path / "traces.jsonl"
            second = trace.model_copy(update={"conclusion": "Quite another answer."})
            lines.write_text("".join(f"{t.model_dump_json()}\n" for t in (trace, second)))
            other.set_input_files("#trace-file", lines)
            other.select_option("#choices", index=1)
            expect(other.locator(".sb-conclusion")).to_have_text("Quite another answer.")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", "{}", "a.json is not a trace."),
        ("a.jsonl", "", "a.jsonl is empty."),
        ("a.jsonl", '{"schema_version": 2}\nno', "Line 1 of a.jsonl is not a trace."),
        (
            "a.json",
            '{"schema_version": 9, "stages": [], "messages": []}',
            "a.json is a trace of version 9, which this page does not read.",
        ),
        (
            "a.json",
            '{"schema_version": 2, "messages": [],'
            ' "stages": [{"candidates": [{}], "matches": []}]}',
            "This file is damaged: it is not a whole trace.",
        ),
    ],
)
def test_a_file_that_is_no_trace_is_refused_in_words(
    browser: Browser, name: str, content: str, sentence: str
) -> None:
    with page_server(World()) as url, opened(browser, url) as page:
        file: Any = {"name": name, "mimeType": "application/json", "buffer": content.encode()}
        page.set_input_files("#trace-file", file)
        expect(page.locator("#problem")).to_have_text(sentence)


def test_the_viewer_opens_traces_of_the_first_version(browser: Browser, tmp_path: Path) -> None:
    with page_server(World()) as url, opened(browser, url) as page:
        ask(page)
        answered(page)
        old = json.loads(trace_of(page, url).model_dump_json())
        old["schema_version"] = 1
        for key in ("retraces", "limited"):
            del old[key]
        for stage in old["stages"]:
            del stage["planned"]
            for candidate in stage["candidates"]:
                del candidate["score"], candidate["parent"]
            for match in stage["matches"]:
                del match["explanation"]
        (tmp_path / "old.json").write_text(json.dumps(old))
        page.set_input_files("#trace-file", tmp_path / "old.json")
        expect(page.locator(".sb-conclusion")).to_have_text(ANSWER)
        expect(page.locator(".sb-won")).to_have_count(4)


def test_what_models_and_people_write_stays_text(browser: Browser) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    with page_server(World(said=attack)) as url, opened(browser, url, **DESKTOP) as page:
        ask(page, f"What is this? {attack}")
        answered(page)
        expect(page.locator(".sb-conclusion")).to_have_text(attack)
        expect(page.locator(".sb-text").first).to_have_text(attack)
        expect(page.locator(".asked h2")).to_have_text(f"What is this? {attack}")
        assert page.locator("#turns img, #turns script").count() == 0
        assert page.title() == "Stagebeam"


def test_errors_are_told_in_words_with_what_to_do(browser: Browser) -> None:
    world = World()
    expected = ("Failed to load resource", "net::ERR")
    with page_server(world) as url, opened(browser, url, expected, **DESKTOP) as page:
        page.click("#ask")
        expect(page.locator("#problem")).to_have_text("Write a question first.")
        page.click("#settings summary")
        page.fill("#candidates", "99")
        ask(page)
        expect(page.locator("#problem")).to_contain_text(
            "candidates is over this server's limit of 16."
        )
        expect(page.locator("#question")).to_have_value(QUESTION)
        file: Any = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"}
        page.set_input_files("#image", file)
        expect(page.locator("#problem")).to_contain_text("notes.txt is not a picture")
        page.set_input_files("#image", {**file, "name": "bad.png", "mimeType": "image/png"})
        expect(page.locator("#problem")).to_contain_text("bad.png cannot be opened as a picture")
        page.goto(f"{url}/?trace=gone")
        expect(page.locator("#problem")).to_contain_text("There is no trace 'gone'")
    with page_server(World()) as url, opened(browser, url, expected, **DESKTOP) as page:
        page.context.set_offline(True)
        ask(page)
        expect(page.locator("#problem")).to_contain_text("The server cannot be reached.")
        page.context.set_offline(False)
        page.click("text=Try again")
        answered(page)
        expect(page.locator("#problem")).to_be_hidden()


def test_a_key_is_asked_for_and_kept_for_this_tab_only(browser: Browser) -> None:
    expected = ("status of 401",)
    with (
        page_server(World(), locked=True) as url,
        opened(browser, url, expected, **DESKTOP) as page,
    ):
        ask(page)
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        answered(page)
        page.reload()
        expect(page.locator(".sb-conclusion")).to_have_text(ANSWER)
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []


def test_the_page_and_the_fold_in_python_build_the_same_trace(
    browser: Browser, tmp_path: Path
) -> None:
    async def told(method: Any) -> list[Any]:
        settings = SearchSettings(method=method, candidates=4, max_answer_tokens=100_000)
        prompt = Prompt((Message("user", QUESTION),))
        ids = {"generator_id": "g", "judge_id": "j"}
        return [event async for event in events(prompt, World(), World(), settings, **ids)]

    with page_server(World()) as url, opened(browser, url) as page:
        for method in ("greedy", "majority", "best_of_n", "sentence_beam", "stage_beam"):
            with ThreadPoolExecutor(1) as beside:  # this thread's loop is Playwright's
                happened = beside.submit(asyncio.run, told(method)).result()
            last = happened[-1]
            sent = [event_to_json(e) for e in [*happened[:6], Restarted(), *happened[:-1]]]
            folded = page.evaluate(
                """async events => {
                  const { begin, tell } = await import("./page/fold.js");
                  return events.reduce(tell, begin());
                }""",
                sent,
            )
            assert folded["text"] == last.trace.text and folded["restarts"] == 1
            for stage in folded["stages"]:
                del stage["visit"]
            assert folded["stages"] == last.trace.model_dump(mode="json")["stages"]


def test_static_files_have_their_types_and_a_strict_policy() -> None:
    with page_server(World()) as url:
        for path, kind in {
            "/": "text/html; charset=utf-8",
            "/page/app.js": "text/javascript; charset=utf-8",
            "/page/viewer.js": "text/javascript; charset=utf-8",
            "/page/viewer.css": "text/css; charset=utf-8",
            "/page/icon.svg": "image/svg+xml",
            "/page/settings.json": "application/json",
        }.items():
            reply = httpx.get(url + path)
            assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-cache"
            if "etag" in reply.headers:
                again = httpx.get(url + path, headers={"If-None-Match": reply.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")
        for outside in ("/page/../gateway.py", "/page/%2e%2e/gateway.py", "/page/", "/page/x.js"):
            assert httpx.get(url + outside).status_code == 404
