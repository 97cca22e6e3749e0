"""`stagebeam ask`: what it prints, shows and says, against a real HTTP server."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest
import typer
from page_world import KEY, QUESTION, World, page_server, picture
from rich.console import Console
from typer.testing import CliRunner, Result

from jobs.ask import main, show, watch
from jobs.ask_view import under_way
from stagebeam.search.events import Event, Restarted
from stagebeam.search.fold import Fold
from stagebeam.search.trace import Trace
from stagebeam.stages import Stage

ROOT = Path(__file__).parents[2]
ANSWER = "There are two more red balls than blue ones."

app = typer.Typer()
app.command()(main)


def run(*words: str, **env: str) -> Result:
    return CliRunner(env=env).invoke(app, list(words))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    with page_server(world) as url:
        yield url


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "balls.png"
    path.write_bytes(picture())
    return path


def test_where_nobody_watches_only_the_conclusion_is_printed(
    world: World, url: str, image: Path
) -> None:
    result = run(str(image), QUESTION, "--url", url)
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    asked = world.questions[-1]
    assert asked.images == (picture(),) and asked.messages[0].text == QUESTION


def test_json_prints_the_whole_trace(url: str) -> None:
    result = run(QUESTION, "--url", url, "--json")
    trace = Trace.model_validate_json(result.stdout)
    assert trace.conclusion == ANSWER and len(trace.stages) == 4


def test_options_reach_the_search_and_what_is_left_out_is_the_servers(
    world: World, url: str
) -> None:
    options = "--method best_of_n --candidates 2 --tournament chain --seed 7 --temperature 0.9"
    assert run(QUESTION, "--url", url, "--model", "balls", *options.split()).exit_code == 0
    asked = world.settings[-1]
    assert (asked.method, asked.candidates, asked.tournament) == ("best_of_n", 2, "chain")
    assert (asked.seed, asked.temperature) == (7, 0.9)
    run(QUESTION, "--url", url)
    assert (world.settings[-1].method, world.settings[-1].candidates) == ("stage_beam", 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a", "b", "c"), "Give a picture and one question; put the question in quotes."),
        (("missing.png", "What?"), "There is no picture at missing.png."),
        ((__file__, "What?"), f"{__file__} is not a picture."),
        (
            ("What?", "--candidates", "99"),
            "candidates is over this server's limit of 16.",
        ),
        (("What?", "--model", "gpt"), "There is no model 'gpt'; this server has 'balls'."),
    ],
)
def test_a_mistake_is_told_in_one_sentence(url: str, words: tuple[str, ...], sentence: str) -> None:
    result = run(*words, "--url", url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {sentence}\n"


def test_where_no_server_is_it_says_how_to_start_one() -> None:
    result = run("What?", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: No server answers at http://127.0.0.1:9; start one with `stagebeam serve RECIPE`,"
        " or name another with --url.\n"
    )


def test_a_key_comes_from_the_option_or_the_environment() -> None:
    with page_server(World(), locked=True) as url:
        result = run(QUESTION, "--url", url)
        assert result.exit_code == 2
        assert result.stderr.endswith("Give it with --api-key or STAGEBEAM_API_KEY.\n")
        assert run(QUESTION, "--url", url, "--api-key", KEY).stdout == ANSWER + "\n"
        assert run(QUESTION, "--url", url, STAGEBEAM_API_KEY=KEY).stdout == ANSWER + "\n"


def test_an_answer_without_a_conclusion_is_no_success() -> None:
    with page_server(World(tagged=False)) as url:
        result = run(QUESTION, "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "The answer has no conclusion.\n"


async def happened(url: str) -> list[Event]:
    """Everything that one search tells."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        question = [{"role": "user", "content": QUESTION}]
        return [event async for event in watch(client, None, question, {})]


async def shown(events: list[Event]) -> str:
    async def replayed() -> AsyncIterator[Event]:
        for event in events:
            yield event

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=110)
    await show(replayed(), console)
    return screen.getvalue()


async def test_a_terminal_shows_stages_losers_matches_and_the_conclusion(url: str) -> None:
    events = await happened(url)
    screen = await shown(events)
    for text in (
        "SUMMARY",
        "I will count each colour by itself, check both counts, and subtract.",
        "#3 the same as #1",
        "#4 tags broken: <CAPTION> Balls of two colours",
        "#1 over #2",
        "% (read first, second), margin",
        "by rule",
        ANSWER,
        "tokens read by the judge",
    ):
        assert text in screen
    assert "starts over" in await shown([*events[:9], Restarted(), *events])


async def test_what_is_being_decided_is_shown_as_far_as_it_is(url: str) -> None:
    screens = []
    fold = Fold()
    for event in await happened(url):
        fold.add(event)
        screen = io.StringIO()
        Console(file=screen, width=110).print(under_way(list(fold.open.values())))
        screens.append(screen.getvalue())
    assert "SUMMARY  writing, 0 of 4" in screens[0]
    assert "writing, 2 of 4" in screens[2] and "#2 I will look at the picture" in screens[2]
    assert "judging" in screens[4] and "#1 over #2" in screens[5]
    assert screens[-1].strip() == ""


def test_ctrl_c_ends_the_search_on_the_server_too() -> None:
    world = World(hold=(Stage.CAPTION, 1))
    with page_server(world) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.ask", QUESTION, "--url", url],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert world.held.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "Stopped.\n")
        assert world.cancelled.wait(5)
