"""One line about a verdict, from a generator with a script."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from stagebeam.inference.explain import explain
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    JudgeRequest,
    Prompt,
    Usage,
    Verdict,
)
from stagebeam.inference.wording import verdict_messages
from stagebeam.records import Message


@dataclass
class Writer:
    text: str = " It counts.\n"
    requests: list[GenerateRequest] = field(default_factory=list)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.requests.append(request)
        yield Candidate(0, self.text, 3, -1.0, "stop")
        yield Usage(prefill_tokens=20, decode_tokens=3, sequential_passes=3, image_encodes=1)


REQUEST = JudgeRequest(
    Prompt((Message("user", "Q"),), (b"image",)), None, "", ("a", "b"), ((0, 1), (1, 0), (0, 1))
)
VERDICTS = (Verdict(2, 1), Verdict(-1, -2), Verdict(1, -1))


async def test_the_winner_is_explained_in_the_conversation_that_judged_it() -> None:
    writer = Writer()
    lines, usage = await explain(writer, REQUEST, VERDICTS)
    assert lines == ("It counts.", "It counts.", "")
    first, second = writer.requests
    for asked, pair, chosen in ((first, ("a", "b"), "1"), (second, ("b", "a"), "2")):
        *shown, said, why = asked.prompt.messages
        assert tuple(shown) == verdict_messages(REQUEST, *pair)
        assert said == Message("assistant", chosen)
        assert f"candidate {chosen} is better" in why.text
        assert asked.prompt.images == (b"image",)
    assert usage == Usage(image_encodes=2, judge_tokens=46, sequential_passes=3)


async def test_it_is_greedy_and_ends_with_the_line_or_after_48_tokens() -> None:
    writer = Writer("first line\nsecond line")
    lines, _ = await explain(writer, REQUEST, VERDICTS)
    assert lines[0] == "first line"
    (asked, _) = writer.requests
    assert asked.sampling.temperature == 0 and asked.sampling.max_new_tokens == 48
    assert asked.stops == ("\n",)
