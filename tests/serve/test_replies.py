"""A trace as OpenAI's reply, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from serve.replies import EventStream, completion
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


def deltas(pieces: Iterable[bytes]) -> list[dict[str, str]]:
    events = [json.loads(piece.removeprefix(b"data: ")) for piece in pieces if b"DONE" not in piece]
    return [event["choices"][0]["delta"] for event in events if event["choices"]]


def test_a_stage_is_sent_when_its_last_sentence_is_decided_and_all_of_them_once() -> None:
    whole = trace(*(decided("SENTENCE", text) for text in SENTENCES))
    stream = EventStream("reply", "model")
    sent = [deltas(stream.decided(stage)) for stage in whole.stages]
    assert [len(piece) for piece in sent] == [0, 1, 1, 2]
    closing = deltas(stream.closed(whole, include_usage=False, include_trace=False))
    assert closing == [{}]
    pieces = [delta for piece in sent for delta in piece]
    message = completion("reply", "model", whole, include_trace=False)["choices"][0]["message"]
    said = "".join(delta.get("reasoning_content", "") for delta in pieces)
    assert said == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in pieces) == message["content"] == "2"


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
