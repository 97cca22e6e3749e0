"""A chat server with a script, over real HTTP: as much of OpenAI's API as vLLM and SGLang have.

A token is a word with the white space before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from http_server import served

from stagebeam.recipe import EngineConfig, JudgeConfig

MODEL = "scripted"
LOGPROB = -0.5  # of every token
CACHED = 2  # prompt tokens that it says it had

Body = dict[str, Any]


@dataclass
class Chat:
    """Its behaviour, and what it saw."""

    says: Callable[[Body], str] = lambda body: "one two three"
    likeliest: Callable[[Body], dict[str, float]] = lambda body: {"1": -0.1, "2": -2.0}
    stops: Literal["kept", "named", "dropped"] = "kept"  # how it treats a stop text
    logprobs: Literal["given", "none", "refused"] = "given"
    usage: bool = True
    pause_s: float = 0.0  # before each token
    faults: list[str] = field(default_factory=list)  # of the first requests
    status: int | None = None  # every request gets this
    requests: list[Body] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    left: int = 0  # replies that the client did not hear to the end
    sent: int = 0  # tokens

    async def reply(self, request: Request) -> Response:
        body: Body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        fault = self.faults.pop(0) if self.faults else ""
        if self.status is not None:
            return _error(self.status, "Scripted.")
        if fault in ("429", "500"):
            return _error(int(fault), "Scripted.", {"retry-after": "0.3"} if fault == "429" else {})
        if self.logprobs == "refused" and body.get("logprobs"):
            return _error(400, "logprobs are not available for this model.")
        if fault == "page":
            return Response("<html>", media_type="application/json")
        if body.get("stream"):
            events = self._stream(body, broken=fault == "cut")
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(self._whole(body))

    def _whole(self, body: Body) -> Body:
        """One token and its rivals."""
        rivals = self.likeliest(body)
        best = max(rivals, key=lambda token: rivals[token])
        choice: Body = {
            "index": 0,
            "message": {"role": "assistant", "content": best},
            "finish_reason": "length",
        }
        if self.logprobs == "given":
            top = [{"token": t, "logprob": lp, "bytes": None} for t, lp in rivals.items()]
            kept = top[: body["top_logprobs"]]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": kept}]}
        return _object("chat.completion", [choice], self._usage(body, 1))

    async def _stream(self, body: Body, *, broken: bool) -> AsyncIterator[bytes]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        done = False
        try:
            tokens, finish, stop = self._tokens(body)
            for number, token in enumerate(tokens):
                await anyio.sleep(self.pause_s)
                if broken and number == 1:
                    raise ConnectionAbortedError
                choice: Body = {"index": 0, "delta": {"content": token}, "finish_reason": None}
                if self.logprobs == "given" and body.get("logprobs"):
                    given = {"token": token, "logprob": LOGPROB, "bytes": None, "top_logprobs": []}
                    choice["logprobs"] = {"content": [given]}
                self.sent += 1
                yield _event(_object("chat.completion.chunk", [choice]))
            last: Body = {"index": 0, "delta": {}, "finish_reason": finish}
            if self.stops == "named":
                last["stop_reason"] = stop
            yield _event(_object("chat.completion.chunk", [last]))
            if self.usage and body["stream_options"]["include_usage"]:
                usage = self._usage(body, len(tokens))
                yield _event(_object("chat.completion.chunk", [], usage))
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self.running -= 1
            self.left += not done and not broken

    def _tokens(self, body: Body) -> tuple[list[str], str, str | None]:
        """What is sent, the finish reason, and the stop that was seen."""
        text = self.says(body)
        ends = {text.index(s) + len(s): s for s in body.get("stop") or () if s in text}
        stop = ends[min(ends)] if ends else None
        if stop is not None:
            kept = self.stops == "kept" and body.get("include_stop_str_in_output")
            text = text[: min(ends) - (0 if kept else len(stop))]
        tokens = re.findall(r"\s*\S+|\s+$", text)
        if len(tokens) > body["max_tokens"]:
            return tokens[: body["max_tokens"]], "length", None
        return tokens, "stop", stop

    def _usage(self, body: Body, tokens: int) -> Body:
        prompt = sum(len(text_of(m).split()) for m in body["messages"])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": CACHED},
        }


def text_of(message: Body) -> str:
    """The text of one message of a request."""
    content = message["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])


def _object(kind: str, choices: list[Body], usage: Body | None = None) -> Body:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }


def _event(data: Body) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers=headers)


@contextmanager
def chatting(chat: Chat) -> Iterator[str]:
    """Serve it; yields the base URL and stops the server at the end."""
    app = FastAPI()
    app.post("/v1/chat/completions")(chat.reply)
    with served(app, log_level="critical") as url:  # it cuts connections on purpose
        yield f"{url}/v1"


def engine_config(url: str, **server: Any) -> EngineConfig:
    return EngineConfig.model_validate(_section(url, server))


def judge_config(url: str, kind: str, **server: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({**_section(url, server), "kind": kind})


def _section(url: str, server: dict[str, Any]) -> Body:
    described = {"base_url": url, "retry_wait_s": 0.01, "retries": 3, **server}
    return {"engine": "openai", "model": MODEL, "server": described}
