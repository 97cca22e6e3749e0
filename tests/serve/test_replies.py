"""A trace as OpenAI's reply, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from serve.replies import EventStream, completion
from stagebeam.search.events import (
    Answered,
    CandidateFinished,
    Event,
    Restarted,
    StageDecided,
    StageOpened,
)
from stagebeam.search.fold import winner_of
from stagebeam.search.trace import CandidateTrace, StageName, StageTrace, Trace, UsageTrace
from stagebeam.stages import parse

SENTENCES = (
    "<SUMMARY> I count. ",
    "Then I say. </SUMMARY>",
    " <CAPTION> Two. </CAPTION> <REASONING> One ",
    "and one. </REASONING> <CONCLUSION> 2 </CONCLUSION>",
)


def decided(stage: StageName, text: str, finish: Any = "stop") -> StageTrace:
    only = CandidateTrace(index=0, text=text, tokens=3, logprob=-1, finish=finish, valid=True)
    return StageTrace(stage=stage, planned=1, candidates=(only,), winner=0, usage=UsageTrace())


def trace(*stages: StageTrace, limited: Any = None) -> Trace:
    text = "".join(winner_of(stage).text for stage in stages)
    parsed = parse(text)
    return Trace(
        id="id",
        messages=(),
        image_digests=(),
        method="sentence_beam",
        candidates=1,
        tournament="none",
        temperature=1,
        top_p=1,
        seed=0,
        generator="g",
        judge=None,
        stages=stages,
        limited=limited,
        text=text,
        conclusion=parsed.conclusion,
        problems=tuple(map(str, parsed.problems)),
        usage=UsageTrace(),
    )


def events_of(visit: int, stage: StageTrace) -> list[Event]:
    return [
        StageOpened(visit, stage.stage, stage.planned),
        *(CandidateFinished(visit, candidate) for candidate in stage.candidates),
        StageDecided(visit, stage.winner, stage.usage),
    ]


def told(stream: EventStream, events: Iterable[Event]) -> list[bytes]:
    return [piece for event in events for piece in stream.told(event)]


def deltas(pieces: Iterable[bytes]) -> list[dict[str, str]]:
    events = [json.loads(piece.removeprefix(b"data: ")) for piece in pieces if b"DONE" not in piece]
    return [event["choices"][0]["delta"] for event in events if event["choices"]]


def test_a_stage_is_sent_when_its_last_sentence_is_decided_and_all_of_them_once() -> None:
    whole = trace(*(decided("SENTENCE", text) for text in SENTENCES))
    stream = EventStream("reply", "model")
    sent = [deltas(told(stream, events_of(*each))) for each in enumerate(whole.stages)]
    assert [len(piece) for piece in sent] == [0, 1, 1, 2]
    closing = deltas(stream.closed(whole, include_usage=False, include_trace=False))
    assert closing == [{}]
    pieces = [delta for piece in sent for delta in piece]
    message = completion("reply", "model", whole, include_trace=False)["choices"][0]["message"]
    said = "".join(delta.get("reasoning_content", "") for delta in pieces)
    assert said == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in pieces) == message["content"] == "2"


def test_what_a_search_that_starts_over_says_again_is_not_sent_again_but_told_again() -> None:
    whole = trace(*(decided("SENTENCE", text) for text in SENTENCES))
    events = [event for each in enumerate(whole.stages) for event in events_of(*each)]
    stream = EventStream("reply", "model", include_events=True)
    pieces = told(stream, [*events[:7], Restarted(), *events, Answered(whole)])
    pieces += stream.closed(whole, include_usage=False, include_trace=False)
    said = deltas(pieces)
    assert "".join(delta.get("content", "") for delta in said) == "2"
    assert len([delta for delta in said if "reasoning_content" in delta]) == 3
    chunks = [json.loads(piece.removeprefix(b"data: ")) for piece in pieces[:-1]]
    kinds = [chunk["event"]["type"] for chunk in chunks if "event" in chunk]
    assert kinds.count("restarted") == 1 and kinds.count("stage_opened") == 3 + len(whole.stages)
    assert all(chunk["choices"] == [] for chunk in chunks if "event" in chunk)


def test_events_are_left_out_unless_asked_for() -> None:
    stream = EventStream("reply", "model")
    first = decided("SENTENCE", SENTENCES[0])
    assert told(stream, events_of(0, first)) == []


@pytest.mark.parametrize(
    ("stages", "limited", "reason"),
    [
        ([decided("ANSWER", SENTENCES[0])], None, "stop"),
        ([decided("ANSWER", SENTENCES[0], "length")], None, "length"),
        ([], "seconds", "length"),  # nothing was decided in time
        ([decided("SUMMARY", "<SUMMARY> a </SUMMARY>")], "seconds", "length"),
        ([decided("SENTENCE", text) for text in SENTENCES], "tokens", "stop"),
    ],
)
def test_an_answer_without_its_conclusion_because_of_a_limit_was_cut(
    stages: list[StageTrace], limited: str | None, reason: str
) -> None:
    reply = completion("reply", "model", trace(*stages, limited=limited), include_trace=False)
    assert reply["choices"][0]["finish_reason"] == reason
