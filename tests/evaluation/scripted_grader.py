"""A judge that grades by a script, over real HTTP in OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from http_server import served

from stagebeam.recipe import ReviewConfig

MODEL = "scripted-grader"


@dataclass
class Grader:
    """What it says to a prompt (a number is an HTTP status), and what it was asked."""

    says: Callable[[str], str | int]
    pause_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]

    async def reply(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await anyio.sleep(self.pause_s)
        self.running -= 1
        said = self.says(body["messages"][-1]["content"])
        if isinstance(said, int):
            return JSONResponse({"error": {"message": "Scripted."}}, said)
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
            }
        )


@contextmanager
def grading(grader: Grader) -> Iterator[str]:
    """Serve it; yields the base URL and stops the server at the end."""
    app = FastAPI()
    app.post("/v1/chat/completions")(grader.reply)
    with served(app) as url:
        yield f"{url}/v1"


def review_config(url: str, **changes: Any) -> ReviewConfig:
    """Of that server, with quick retries."""
    quick = {"retries": 1, "retry_wait_s": 0.01}
    return ReviewConfig.model_validate({"base_url": url, "model": MODEL, **quick, **changes})
