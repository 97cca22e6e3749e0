"""A teacher behind a real HTTP server on a free port, scripted by what it is asked.

It speaks OpenAI's chat form. A word in the question (`leaks`, `refuses`, ...) makes it fail that
way every time; beside that, a share of all requests fails in one way or another.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from http_server import served

MODEL = "scripted-teacher"
HTTP_FAULTS = ("429", "500", "cut", "page", "empty")
REPLY_FAULTS = ("tags", "leaks", "refuses", "wrong")
_STANDARD = re.compile(r"Answer to arrive at \(confidential\): (.*)")
_COMPARED = re.compile(r"Correct answer: (.*?)\n.*Answer to compare: (.*?)\n", re.DOTALL)

LLAVA = {
    "Write a conversation": "Question:\nWhat is there?\n===\nAnswer:\nA cat.\n===\n"
    "Question:\nWhere?\n===\nAnswer:\nOn a mat.\n===",
    "Write one detailed description": "A cat sits on a mat.",
    "Write one question": "Question:\nWhy is it calm?\n===\nAnswer:\nBecause it is asleep.\n===",
}


@dataclass
class Teacher:
    """Its behaviour, and what it saw."""

    fault_share: float = 0.0
    pause_s: float = 0.0
    retry_after: str = "0.02"
    status: int | None = None  # every request gets this
    first_faults: list[str] = field(default_factory=list)  # of the first requests
    usage: tuple[int, int] = (100, 50)  # prompt and reply tokens of every answer
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)  # by digest of the request
    running: int = 0
    most_running: int = 0

    async def reply(self, request: Request) -> Response:
        raw = await request.body()
        body, digest = json.loads(raw), hashlib.sha256(raw).hexdigest()
        self.requests.append(body)
        self.times.append(time.monotonic())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await anyio.sleep(self.pause_s)
            return await self._respond(body, digest)
        finally:
            self.running -= 1

    async def _respond(self, body: dict[str, Any], digest: str) -> Response:
        seen = sum(r == body for r in self.requests)
        fault = self._drawn(digest, seen)
        text = _text(body["messages"][-1])
        if self.status is not None or "unacceptable" in text:
            return _error(self.status or 400)
        if fault == "slow":
            await anyio.sleep(0.6)
        if fault in ("429", "500"):
            self.faults[fault] += 1
            return _error(int(fault), self.retry_after if fault == "429" else None)
        whole = json.dumps(
            _completion(body, answer(text, fault, _text(body["messages"][0])), self.usage)
        ).encode()
        if fault == "cut":
            self.faults[fault] += 1
            return StreamingResponse(
                _cut(whole), headers={"content-length": str(len(whole))}, media_type="text/json"
            )
        if fault in ("page", "empty"):
            self.faults[fault] += 1
            return Response("<html>" if fault == "page" else "{}", media_type="application/json")
        self.answered[digest] += 1
        return Response(whole, media_type="application/json")

    def _drawn(self, digest: str, seen: int) -> str:
        """The fault of this request: the same one whenever the same things are asked."""
        if self.first_faults:
            return self.first_faults.pop(0)
        drawn = random.Random(f"{digest} {seen}")
        if drawn.random() >= self.fault_share:
            return ""
        return drawn.choice((*HTTP_FAULTS, *REPLY_FAULTS))


def answer(text: str, fault: str, instructions: str) -> str:
    """What the teacher says to a request's last message; LLaVA's instructions are in its first."""
    if "Reply with one word" in text:
        compared = _COMPARED.search(text)
        assert compared is not None
        if fault in REPLY_FAULTS or "undecided" in text:
            return "Hard to say."
        return "Yes" if compared[1].strip() == compared[2].strip() else "No."
    for kind, reply in LLAVA.items():
        if kind in instructions:
            return {"leaks": "The captions mention a cat.", "refuses": "I'm sorry."}.get(
                fault, reply
            )
    standard = _STANDARD.search(text)
    gold = standard[1] if standard else "nothing"
    fault = next((f for f in (*REPLY_FAULTS, "half") if f"always {f}" in text), fault)
    return staged(gold, fault)


def staged(gold: str, fault: str = "") -> str:
    if fault == "refuses":
        return "I'm sorry, but I can't assist with that."
    if fault == "half":
        return staged(gold).replace("I look", "I \ud83d look")
    reasoning = "As the standard answer says, it is so." if fault == "leaks" else "Seen, so it is."
    said = "certainly not" if fault == "wrong" else gold
    close = "" if fault == "tags" else "</REASONING>"
    return (
        f"<SUMMARY> I look. </SUMMARY>\n<CAPTION> A number. </CAPTION>\n"
        f"<REASONING> {reasoning} {close}\n<CONCLUSION> {said} </CONCLUSION>"
    )


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def _completion(body: dict[str, Any], text: str, usage: tuple[int, int]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        },
    }


def _error(status: int, retry_after: str | None = None) -> Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return JSONResponse({"error": {"message": "Scripted."}}, status, headers=headers)


async def _cut(whole: bytes) -> AsyncIterator[bytes]:
    """Half the body, then the connection is closed."""
    yield whole[: len(whole) // 2]
    raise ConnectionAbortedError


@contextmanager
def serving(teacher: Teacher) -> Iterator[str]:
    """Serve it; yields the base URL and stops the server at the end."""
    app = FastAPI()
    app.post("/v1/chat/completions")(teacher.reply)
    with served(app, log_level="critical") as url:  # it cuts connections on purpose
        yield f"{url}/v1"


def write_questions(folder: Any, texts: list[str], turns: int = 1) -> Any:
    """A LLaVA-CoT jsonl whose answers are plain; every third row has an image."""
    from PIL import Image

    (folder / "img" / "set").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, text in enumerate(texts):
        conversations = []
        for turn in range(turns):
            conversations.append({"from": "human", "value": f"Row {number}.{turn}: {text}?"})
            conversations.append({"from": "gpt", "value": f"{number}-{turn}"})
        row: dict[str, Any] = {"id": f"row-{number}", "conversations": conversations}
        if number % 3 == 0:
            row["image"] = f"set/{number}.png"
            Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(folder / "img" / row["image"])
        lines.append(json.dumps(row) + "\n")
    path = folder / "questions.jsonl"
    path.write_text("".join(lines))
    return path
