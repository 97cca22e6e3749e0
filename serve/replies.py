"""A trace becomes OpenAI's reply, whole or as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
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
from stagebeam.search.event_json import event_to_json
from stagebeam.search.events import Event, StageDecided
from stagebeam.search.fold import Fold, winner_of
from stagebeam.search.trace import Trace
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
    return _json(whole, _whole(trace) if include_trace else {})


def hidden(stage: Stage, body: str, reasoning: Reasoning) -> str:
    """What a reply tells of one of the first three stages."""
    if reasoning == "detailed":
        return wrap(stage, body)
    return body if reasoning == "brief" and stage is Stage.SUMMARY else ""


class EventStream:
    """The events of one streamed reply: a stage's text once, when it is decided.

    Put together, the deltas equal the message of a reply that is not streamed. With
    `include_events` there is also everything that the search tells, each in a chunk of its own
    without choices.
    """

    def __init__(
        self,
        reply_id: str,
        model: str,
        reasoning: Reasoning = "detailed",
        *,
        include_events: bool = False,
    ) -> None:
        self._reasoning: Reasoning = reasoning
        self._id, self._model, self._created = reply_id, model, int(time.time())
        self._include_events = include_events
        self._fold = Fold()  # a stage may be decided in several pieces
        self._sent: list[Stage] = []

    def opened(self) -> bytes:
        return self._delta(Delta(role="assistant", content=""))

    def told(self, happened: Event) -> Iterator[bytes]:
        """The event itself where it was asked for, then the stages that a decision brings."""
        self._fold.add(happened)
        if self._include_events:
            yield self._event([], extra={"event": event_to_json(happened)})
        if isinstance(happened, StageDecided):
            yield from self._texts(self._fold.text)

    def closed(self, trace: Trace, *, include_usage: bool, include_trace: bool) -> Iterator[bytes]:
        yield from self._texts(trace.text)
        last = ChunkChoice(delta=Delta(), finish_reason=_finish_reason(trace))
        yield self._event([last], extra=_whole(trace) if include_trace else {})
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
        self,
        choices: list[ChunkChoice],
        *,
        usage: UsageInfo | None = None,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:
        chunk = ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
        return event(_json(chunk, extra))


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def _json(reply: BaseModel, extra: Mapping[str, Any]) -> dict[str, Any]:
    # Traces and events are whole: their own nulls mean something and stay.
    return {**reply.model_dump(mode="json", exclude_none=True), **extra}


def _whole(trace: Trace) -> dict[str, Any]:
    return {"trace": trace.model_dump(mode="json")}


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
