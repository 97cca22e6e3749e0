from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.search.fold import winner_of
from stagebeam.search.stage_beam import stage_beam
from stagebeam.search.trace import StageTrace
from stagebeam.stages import STAGES, Stage


def script(kit: SimpleNamespace, n: int, **replaced: list[Any]) -> dict[str, list[Any]]:
    """Stage k's candidate i says i; every later stage starts with white space of its own."""
    lines = {
        s: [kit.Say(f"{' ' * k}<{s}> {i} </{s}>") for i in range(n)] for k, s in enumerate(STAGES)
    }
    lines.update({Stage(name): said for name, said in replaced.items()})
    return kit.beam_script(lines)


async def collect(
    kit: SimpleNamespace, generator: object, judge: object, **changed: object
) -> list[StageTrace]:
    settings = kit.settings(method="stage_beam", **changed)
    stages: list[StageTrace] = await kit.decisions(stage_beam, generator, judge, settings)
    return stages


async def test_each_stage_continues_the_winners_text_exactly_as_generated(
    kit: SimpleNamespace,
) -> None:
    generator, judge = kit.ScriptedGenerator(script(kit, 2)), kit.ScriptedJudge(kit.by_number)
    stages = await collect(kit, generator, judge, candidates=2)
    assert [s.stage for s in stages] == [s.value for s in STAGES]
    assert [r.stops for r in generator.requests] == [(s.close_tag,) for s in STAGES]
    chosen = ["<SUMMARY> 1 </SUMMARY>", " <CAPTION> 1 </CAPTION>", "  <REASONING> 1 </REASONING>"]
    prefixes = ["", chosen[0], chosen[0] + chosen[1], "".join(chosen)]
    assert [r.prefix for r in generator.requests] == prefixes
    assert [r.prefix for r in judge.requests] == prefixes
    assert [r.stage for r in judge.requests] == list(STAGES)


@pytest.mark.parametrize(
    ("form", "n", "rounds"),
    [("auto", 4, 1), ("auto", 5, 2), ("round_robin", 3, 1), ("bracket", 8, 3), ("chain", 4, 3)],
)
async def test_calls_are_one_a_stage_and_one_a_judge_round(
    kit: SimpleNamespace, form: str, n: int, rounds: int
) -> None:
    generator, judge = kit.ScriptedGenerator(script(kit, n)), kit.ScriptedJudge(kit.by_number)
    stages = await collect(kit, generator, judge, candidates=n, tournament=form)
    assert len(generator.requests) == 4
    assert len(judge.requests) == 4 * rounds
    assert [s.winner for s in stages] == [n - 1] * 4


async def test_passes_are_the_longest_candidate_of_each_stage_and_one_a_judge_round(
    kit: SimpleNamespace,
) -> None:
    long = "<REASONING> a b c d e 1 </REASONING>"  # 8 tokens; the others have 3
    lines = script(kit, 4, REASONING=[kit.Say(long), *script(kit, 4)["</REASONING>"][1:]])
    generator, judge = kit.ScriptedGenerator(lines), kit.ScriptedJudge(kit.by_number)
    stages = await collect(kit, generator, judge, candidates=4, tournament="bracket")
    assert [s.usage.sequential_passes for s in stages] == [3 + 2, 3 + 2, 8 + 2, 3 + 2]
    assert [s.usage.decode_tokens for s in stages] == [12, 12, 17, 12]
    assert [(s.usage.judge_calls, s.usage.judge_tokens) for s in stages] == [(2, 20)] * 4


async def test_one_candidate_a_stage_asks_no_judge(kit: SimpleNamespace) -> None:
    generator = kit.ScriptedGenerator(script(kit, 1))
    stages = await collect(kit, generator, kit.FailingJudge(), candidates=1)
    assert len(stages) == 4
    assert all(s.matches == () and s.usage.judge_calls == 0 for s in stages)


@pytest.mark.parametrize("finish", ["length", "end"])
async def test_a_winner_that_was_cut_or_ended_its_turn_is_the_last(
    kit: SimpleNamespace, finish: str
) -> None:
    cut = [kit.Say("<CAPTION> going on and", finish=finish)] * 2
    generator = kit.ScriptedGenerator(script(kit, 2, CAPTION=cut))
    stages = await collect(kit, generator, kit.ScriptedJudge(kit.by_number), candidates=2)
    assert [s.stage for s in stages] == ["SUMMARY", "CAPTION"]
    assert not winner_of(stages[-1]).valid


async def test_a_loser_that_was_cut_stops_nothing(kit: SimpleNamespace) -> None:
    lines = [kit.Say("<CAPTION> going on", finish="length"), kit.Say("<CAPTION> 1 </CAPTION>")]
    generator = kit.ScriptedGenerator(script(kit, 2, CAPTION=lines))
    stages = await collect(kit, generator, kit.ScriptedJudge(kit.by_number), candidates=2)
    assert len(stages) == 4 and stages[1].winner == 1


async def test_a_stage_without_tags_that_reached_its_stop_is_built_upon(
    kit: SimpleNamespace,
) -> None:
    lines = [kit.Say("no opening </CAPTION>")] * 2
    generator = kit.ScriptedGenerator(script(kit, 2, CAPTION=lines))
    stages = await collect(kit, generator, kit.ScriptedJudge(kit.by_number), candidates=2)
    assert len(stages) == 4
    assert generator.requests[2].prefix.endswith("no opening </CAPTION>")


async def test_copies_and_rule_losses_are_in_the_trace(kit: SimpleNamespace) -> None:
    said = [f"<SUMMARY> {word} </SUMMARY>" for word in ("1", "1", "2")] + ["junk </SUMMARY>"]
    generator = kit.ScriptedGenerator(script(kit, 4, SUMMARY=[kit.Say(t) for t in said]))
    first, *_ = await collect(kit, generator, kit.ScriptedJudge(kit.by_number), candidates=4)
    assert [c.merged_into for c in first.candidates] == [None, 0, None, None]
    assert [c.valid for c in first.candidates] == [True, True, True, False]
    assert [(m.a, m.b, m.decided_by) for m in first.matches] == [(0, 3, "rule"), (0, 2, "margin")]
