"""The page's server without models: the gateway's application over a scripted search.

Every text and score is known, and the search waits where a test wants to look at it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from PIL import Image, ImageDraw

from serve.gateway import http_app
from serve.keys import Key
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Prompt,
    Usage,
    Verdict,
)
from stagebeam.recipe import EngineConfig, JudgeConfig, Limits, ServeConfig
from stagebeam.search import SearchSettings, events
from stagebeam.search.events import Event
from stagebeam.search_config import SearchConfig
from stagebeam.stages import STAGES, Stage, wrap

QUESTION = "How many more red balls than blue ones are there?"
KEY = "a-key-for-the-tests"

# Text and the judge's score of it; a text that is given twice is merged.
LINES: dict[Stage, list[tuple[str, float]]] = {
    Stage.SUMMARY: [
        ("I will count the red balls and the blue balls, then take the difference.", 0.9),
        ("I will look at the picture and say how many balls there are.", -0.4),
        ("I will count the red balls and the blue balls, then take the difference.", 0.9),
        ("I will count each colour by itself, check both counts, and subtract.", 1.3),
    ],
    Stage.CAPTION: [
        ("Red and blue balls lie on a white table.", 0.1),
        ("Five red balls lie on the left and three blue ones on the right; none is hidden.", 1.6),
        ("Five red balls and four blue balls lie on a table.", -0.7),
        ("Balls of two colours, some of", 0.0),
    ],
    Stage.REASONING: [
        ("There are 5 red balls and 3 blue balls. 5 \N{MINUS SIGN} 3 = 2.", 0.8),
        ("There are 5 red balls and 4 blue ones. 5 \N{MINUS SIGN} 4 = 1.", -1.1),
        ("Counted again: 5 red, 3 blue. The difference is 5 \N{MINUS SIGN} 3 = 2.", 1.5),
        ("There are 8 balls in all, so 8 \N{MINUS SIGN} 3 = 5.", -1.9),
    ],
    Stage.CONCLUSION: [
        ("There are two more red balls than blue ones.", 1.4),
        ("2", 0.6),
        ("There are two more red balls than blue ones.", 1.4),
        ("There are five more red balls.", -1.2),
    ],
}
BROKEN = (Stage.CAPTION, 3)  # never closes its tag


def picture() -> bytes:
    """Five red balls and three blue ones."""
    image = Image.new("RGB", (360, 240), "#f4efe6")
    draw = ImageDraw.Draw(image)
    places = [
        (30, 40),
        (95, 25),
        (60, 105),
        (130, 95),
        (85, 165),
        (225, 50),
        (290, 110),
        (235, 160),
    ]
    for number, (x, y) in enumerate(places):
        colour = "#c8412f" if number < 5 else "#2f64b5"
        draw.ellipse((x, y, x + 46, y + 46), fill=colour)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


@dataclass
class World:
    """Generator, judge and searcher. `hold` is a stage and a candidate that is not written before
    `go_on` is set; `said` replaces every text, and only `tagged` ones have their tags."""

    hold: tuple[Stage, int] | None = None
    said: str | None = None
    tagged: bool = True
    pace: float = 0.0  # seconds that each candidate takes
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    questions: list[Prompt] = field(default_factory=list)
    settings: list[SearchSettings] = field(default_factory=list)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        whole = request.stops == (Stage.CONCLUSION.close_tag,) and not request.prefix
        wanted = STAGES if whole else [s for s in STAGES if s.close_tag in request.stops][:1]
        if len(request.stops) > 4:  # sentences
            wanted = [next(s for s in STAGES if s.close_tag not in request.prefix)]
        tokens = 0
        for index in range(len(request.seeds)):
            await asyncio.sleep(self.pace)
            await self._wait(wanted[0], index)
            text = " ".join(self._text(stage, index) for stage in wanted)
            tokens += len(text.split())
            finish = "length" if (wanted[0], index) == BROKEN else "stop"
            yield Candidate(index, text, len(text.split()), -0.3 * len(text), finish)  # type: ignore[arg-type]
        yield Usage(1, 120, tokens, 24)

    async def compare(self, request: JudgeRequest) -> Judgement:
        scores = [self._score(text) for text in request.candidates]
        margins = [scores[a] - scores[b] for a, b in request.pairs]
        return Judgement(
            tuple(Verdict(margin + 0.35, margin - 0.35) for margin in margins),
            Usage(judge_tokens=180 * len(margins), judge_calls=1, sequential_passes=1),
        )

    async def search(
        self,
        prompt: Prompt,
        settings: SearchSettings,
        watched: bool = True,
        undivided: bool = False,
    ) -> AsyncGenerator[Event]:
        self.questions.append(prompt)
        self.settings.append(settings)
        ids = {"generator_id": "balls-1", "judge_id": "judge-1"}
        async for event in events(prompt, self, self, settings, **ids):
            yield event

    async def fingerprints(self) -> tuple[str, str]:
        return "balls-1", "judge-1"

    async def _wait(self, stage: Stage, index: int) -> None:
        if (stage, index) != self.hold:
            return
        self.held.set()
        try:
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    def _text(self, stage: Stage, index: int) -> str:
        body = self.said or LINES[stage][index % 4][0]
        if not self.tagged:
            return body
        if (stage, index) == BROKEN:
            return f"{stage.open_tag} {body}"
        return wrap(stage, body)

    def _score(self, text: str) -> float:
        return sum(s for lines in LINES.values() for body, s in dict(lines).items() if body in text)


@contextmanager
def page_server(
    world: World, *, locked: bool = False, limits: Limits | None = None, **search: Any
) -> Iterator[str]:
    """Yields the URL of a real HTTP server of this process, that asks for KEY if it is `locked`."""
    config = ServeConfig(
        model_name="balls",
        generator=EngineConfig(model="none"),
        judge=JudgeConfig(model="none"),
        limits=limits or Limits(),
    )
    keys = (Key("tester", hashlib.sha256(KEY.encode()).digest()),) if locked else None
    app = http_app(config, SearchConfig(**search), world, keys=keys)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        world.go_on.set()
        server.should_exit = True
        thread.join(10)
