from __future__ import annotations

from types import SimpleNamespace

import pytest

from stagebeam.search.best_of_n import best_of_n


@pytest.mark.parametrize(
    ("form", "calls"), [("round_robin", 1), ("bracket", 2), ("chain", 3), ("auto", 1)]
)
async def test_whole_answers_are_drawn_in_one_call_and_judged_whole(
    kit: SimpleNamespace, form: str, calls: int
) -> None:
    script = {"</CONCLUSION>": [kit.Say(kit.staged(str(n))) for n in (3, 9, 4, 1)]}
    generator, judge = kit.ScriptedGenerator(script), kit.ScriptedJudge(kit.by_number)
    settings = kit.settings(method="best_of_n", candidates=4, tournament=form)
    (only,) = await kit.decisions(best_of_n, generator, judge, settings)
    assert (len(generator.requests), len(judge.requests)) == (1, calls)
    assert all(r.stage is None and r.prefix == "" for r in judge.requests)
    assert (only.stage, only.winner) == ("ANSWER", 1)
    assert generator.requests[0].stops == ("</CONCLUSION>",)


async def test_an_answer_with_a_stage_missing_loses_by_rule(kit: SimpleNamespace) -> None:
    bare = kit.Say("<CONCLUSION> 9 </CONCLUSION>")
    script = {"</CONCLUSION>": [bare, kit.Say(kit.staged("1"))]}
    generator = kit.ScriptedGenerator(script)
    settings = kit.settings(method="best_of_n", candidates=2)
    (only,) = await kit.decisions(best_of_n, generator, None, settings)
    assert only.winner == 1
    assert [c.valid for c in only.candidates] == [False, True]
    assert [m.decided_by for m in only.matches] == ["rule"]
