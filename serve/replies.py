"""A trace becomes OpenAI's reply, whole or as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from serve.protocol import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    Reasoning,
    UsageInfo,
)
from stagebeam.search.fold import winner_of
from stagebeam.search.trace import StageTrace, Trace
from stagebeam.stages import STAGES, Stage, parse, wrap

DONE = b"data: [DONE]\n\n"


def completion(
    reply_id: str,
    model: str,
    trace: Trace,
    *,
    include_trace: bool,
    reasoning: Reasoning = "detailed",
) -> dict[str, Any]:
    """The JSON body of a reply that is not streamed."""
    bodies = parse(trace.text).bodies
    told = [hidden(s, bodies[s], reasoning) for s in STAGES[:-1] if bodies.get(s)]
    message = AnswerMessage(
        content=trace.conclusion or "",
        reasoning_content=None if reasoning == "none" else "\n".join(filter(None, told)),
    )
    whole = ChatCompletion(
        id=reply_id,
        created=int(time.time()),
        model=model,
        choices=[Choice(message=message, finish_reason=_finish_reason(trace))],
        usage=_usage(trace),
    )
    return _json(whole, trace if include_trace else None)


def hidden(stage: Stage, body: str, reasoning: Reasoning) -> str:
    """What a reply tells of one of the first three stages."""
    if reasoning == "detailed":
        return wrap(stage, body)
    return body if reasoning == "brief" and stage is Stage.SUMMARY else ""


class EventStream:
    """The events of one streamed reply: a stage's text once, when it is decided.

    Put together, the deltas equal the message of a reply that is not streamed.
    """

    def __init__(self, reply_id: str, model: str, reasoning: Reasoning = "detailed") -> None:
        self._reasoning: Reasoning = reasoning
        self._id, self._model, self._created = reply_id, model, int(time.time())
        self._text = ""  # decided so far; a stage may be decided in several pieces
        self._sent: list[Stage] = []

    def opened(self) -> bytes:
        return self._delta(Delta(role="assistant", content=""))

    def decided(self, stage: StageTrace) -> Iterator[bytes]:
        """Events for the stages that the winner of this decision brings."""
        self._text += winner_of(stage).text
        yield from self._texts(self._text)

    def closed(self, trace: Trace, *, include_usage: bool, include_trace: bool) -> Iterator[bytes]:
        yield from self._texts(trace.text)
        last = ChunkChoice(delta=Delta(), finish_reason=_finish_reason(trace))
        yield self._event([last], trace=trace if include_trace else None)
        if include_usage:
            yield self._event([], usage=_usage(trace))
        yield DONE

    def _texts(self, text: str) -> Iterator[bytes]:
        bodies = parse(text).bodies
        for stage in STAGES:
            body = bodies.get(stage)
            if not body or stage in self._sent:
                continue
            if stage is Stage.CONCLUSION:
                yield self._delta(Delta(content=body))
            elif told := hidden(stage, body, self._reasoning):
                gap = "\n" if self._sent else ""
                yield self._delta(Delta(reasoning_content=gap + told))
            self._sent.append(stage)

    def _delta(self, delta: Delta) -> bytes:
        return self._event([ChunkChoice(delta=delta)])

    def _event(
        self, choices: list[ChunkChoice], usage: UsageInfo | None = None, trace: Trace | None = None
    ) -> bytes:
        chunk = ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
        return event(_json(chunk, trace))


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def _json(reply: BaseModel, trace: Trace | None) -> dict[str, Any]:
    body = reply.model_dump(mode="json", exclude_none=True)
    # A trace is whole: its own nulls mean something and stay.
    return body if trace is None else {**body, "trace": trace.model_dump(mode="json")}


def _usage(trace: Trace) -> UsageInfo:
    prompt, decoded = trace.usage.prefill_tokens, trace.usage.decode_tokens
    return UsageInfo(
        prompt_tokens=prompt,
        completion_tokens=decoded,
        total_tokens=prompt + decoded,
        search=trace.usage,
    )


def _finish_reason(trace: Trace) -> Literal["stop", "length"]:
    """A limit that left no whole conclusion cut the answer, whatever the last stage says."""
    if trace.limited is not None and trace.conclusion is None:
        return "length"
    return "length" if winner_of(trace.stages[-1]).finish == "length" else "stop"
