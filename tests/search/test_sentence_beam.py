from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import Candidate, GenerateRequest, Usage
from stagebeam.search import sentence_beam as module
from stagebeam.search.sentence_beam import sentence_beam
from stagebeam.search.state import current_stage
from stagebeam.search.trace import StageTrace
from stagebeam.stages import STAGES, Stage, parse

WHOLE = [
    "<SUMMARY> I count. ",
    "Then I say. </SUMMARY>",
    " <CAPTION> Two balls. </CAPTION>",
    " <REASONING> One and one. ",
    "So 2. </REASONING>",
    " <CONCLUSION> 2 </CONCLUSION>",
]


@dataclass
class Sentences:
    """Says the k-th sentence in its k-th call; every candidate beside the first is longer."""

    sentences: Sequence[Any]
    requests: list[GenerateRequest] = field(default_factory=list)

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        said = self.sentences[min(len(self.requests), len(self.sentences) - 1)]
        self.requests.append(request)
        for index in range(len(request.seeds)):
            yield said.candidate(index)
        yield Usage(decode_tokens=3 * len(request.seeds), sequential_passes=3)


async def beam(
    kit: SimpleNamespace, generator: Any, judge: Any, **changed: Any
) -> list[StageTrace]:
    wanted = kit.settings(method="sentence_beam", **changed)
    stages: list[StageTrace] = await kit.decisions(sentence_beam, generator, judge, wanted)
    return stages


def text_of(stages: Sequence[StageTrace]) -> str:
    return "".join(s.candidates[s.winner].text for s in stages)


async def test_each_winner_is_extended_by_a_sentence_until_the_conclusion_closes(
    kit: SimpleNamespace,
) -> None:
    generator = Sentences([kit.Say(text) for text in WHOLE])
    stages = await beam(kit, generator, None, candidates=1)
    assert text_of(stages) == "".join(WHOLE) and parse(text_of(stages)).valid
    assert [s.stage for s in stages] == ["SENTENCE"] * 6
    assert [r.prefix for r in generator.requests] == ["".join(WHOLE[:i]) for i in range(6)]
    stops = set(generator.requests[0].stops)
    assert {". ", "? ", "! ", ".\n", *(s.close_tag for s in STAGES)} <= stops
    assert " " not in stops and "." not in stops  # 3.5 is no end


async def test_every_sentence_is_one_tournament_judged_as_the_stage_that_it_is_in(
    kit: SimpleNamespace,
) -> None:
    generator, judge = kit.SeededGenerator(), kit.ScriptedJudge(kit.by_number)
    stages = await beam(kit, generator, judge, candidates=3)
    assert [len(r.seeds) for r in generator.requests] == [3] * 4
    assert [r.stage for r in judge.requests] == list(STAGES)
    for stage in stages:
        scores = [kit.by_number(c.text) for c in stage.candidates]
        assert scores[stage.winner] == max(scores)


async def test_seeds_differ_from_sentence_to_sentence(kit: SimpleNamespace) -> None:
    generator = Sentences([kit.Say(text) for text in WHOLE])
    await beam(kit, generator, None, candidates=1)
    assert len({r.seeds for r in generator.requests}) == 6


@pytest.mark.parametrize(
    ("sentences", "count"),
    [
        ([("<SUMMARY> a. ", "stop"), ("b", "end")], 2),
        ([("<SUMMARY> a. ", "stop"), ("b c", "length")], 2),
    ],
)
async def test_a_model_that_ends_its_turn_or_is_cut_ends_the_answer(
    kit: SimpleNamespace, sentences: list[tuple[str, str]], count: int
) -> None:
    generator = Sentences([kit.Say(text, finish=finish) for text, finish in sentences])
    assert len(await beam(kit, generator, None, candidates=1)) == count


async def test_the_sentences_together_have_the_answers_longest_length(
    kit: SimpleNamespace,
) -> None:
    generator = Sentences([kit.Say(text) for text in WHOLE])
    await beam(kit, generator, None, candidates=1, max_new_tokens=9)
    longest = [r.sampling.max_new_tokens for r in generator.requests]
    assert longest == [9, 6, 2]  # 3, 4 and 4 tokens were said: then nothing is left


async def test_an_endless_answer_is_finished_greedily_at_the_bound(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SENTENCES", 3)
    generator = Sentences([kit.Say(text) for text in ("<SUMMARY> a. ", "b. ", "c. ", "end")])
    stages = await beam(kit, generator, None, candidates=1)
    assert [s.stage for s in stages] == ["SENTENCE"] * 3 + ["REST"]
    last = generator.requests[-1]
    assert (last.stops, last.sampling.temperature) == (("</CONCLUSION>",), 0.0)
    assert last.prefix == "<SUMMARY> a. b. c. "


async def test_a_sentence_that_breaks_the_form_loses_by_rule(kit: SimpleNamespace) -> None:
    lines = ["<SUMMARY> fine. ", "outside. ", "<CAPTION> early. ", "</SUMMARY>", "  "]

    class Once(Sentences):
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            for index, text in enumerate(lines):
                yield kit.Say(text).candidate(index)
            self.requests.append(request)
            if len(self.requests) > 1:
                raise ConnectionResetError

    judge = kit.ScriptedJudge(lambda text: 0.0)
    search, told = kit.search(Once([]), judge, kit.settings(method="sentence_beam", candidates=5))
    with pytest.raises(ConnectionResetError):
        await sentence_beam(search)
    assert [c.valid for c in told.stages[0].candidates] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("prefix", "stage"),
    [
        ("", Stage.SUMMARY),
        ("<SUMMARY> a", Stage.SUMMARY),
        ("<SUMMARY> a </SUMMARY>", Stage.CAPTION),
        ("<SUMMARY> a </SUMMARY> <CAPTION> b. ", Stage.CAPTION),
        ("<SUMMARY> a </SUMMARY> <CONCLUSION> b", Stage.CONCLUSION),
        ("<CONCLUSION> b </CONCLUSION>", Stage.CONCLUSION),
    ],
)
def test_the_stage_of_a_text_is_the_open_one_or_the_next(prefix: str, stage: Stage) -> None:
    assert current_stage(prefix) is stage
