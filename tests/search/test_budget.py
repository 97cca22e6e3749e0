"""Spending where stages disagree: N by stage, early stops, adaptive budgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.search.contest import contest
from stagebeam.search.stage_beam import stage_beam
from stagebeam.search.trace import StageTrace
from stagebeam.stages import Stage, wrap


def reasons(kit: SimpleNamespace, *bodies: object) -> list[Any]:
    return [kit.Say(wrap(Stage.REASONING, str(body))) for body in bodies]


async def test_each_stage_draws_its_own_number_and_one_where_none_is_said(
    kit: SimpleNamespace,
) -> None:
    generator, judge = kit.SeededGenerator(), kit.ScriptedJudge(kit.by_number)
    wanted = kit.settings(candidates={"CAPTION": 2, "REASONING": 5})
    stages = await kit.decisions(stage_beam, generator, judge, wanted)
    assert [s.planned for s in stages] == [1, 2, 5, 1]
    assert [len(r.seeds) for r in generator.requests] == [1, 2, 5, 1]
    assert [s.usage.judge_calls for s in stages] == [0, 1, 2, 0]  # finals, for the largest N


async def decide(
    kit: SimpleNamespace, generator: Any, judge: Any, n: int, **changed: Any
) -> StageTrace:
    wanted = kit.settings(candidates=n, **changed)
    search, told = kit.search(generator, judge, wanted)
    await contest(search, search.spot(Stage.REASONING), n)
    (decided,) = told.stages
    return decided  # type: ignore[no-any-return]


async def numbers(
    kit: SimpleNamespace, judge: Any, bodies: list[int], **changed: Any
) -> StageTrace:
    generator = kit.ScriptedGenerator({"</REASONING>": reasons(kit, *bodies)})
    return await decide(kit, generator, judge, len(bodies), **changed)


@pytest.mark.parametrize(("form", "rounds"), [("chain", 4), ("bracket", 3), ("finals", 2)])
@pytest.mark.parametrize("wide", [None, 9.0])
async def test_without_a_wide_match_every_round_is_played(
    kit: SimpleNamespace, form: str, rounds: int, wide: float | None
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    bodies = [1, 2, 3, 4, 5]
    decided = await numbers(kit, judge, bodies, tournament=form, early_stop_margin=wide)
    assert (decided.winner, len(judge.requests)) == (4, rounds)


@pytest.mark.parametrize("form", ["chain", "bracket", "finals"])
@pytest.mark.parametrize("seed", range(4))
async def test_a_match_wider_than_the_margin_ends_its_tournament_after_its_round(
    kit: SimpleNamespace, form: str, seed: int
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    bodies = [0, 10, 21, 33, 46, 60]  # no two pairs are as far apart
    decided = await numbers(kit, judge, bodies, tournament=form, early_stop_margin=9.5, seed=seed)
    assert len(judge.requests) == 1
    widest = max(decided.matches, key=lambda m: abs(m.margin))
    assert decided.winner == widest.winner


@pytest.mark.parametrize("seed", range(4))
async def test_a_margin_that_equals_the_limit_does_not_end_it(
    kit: SimpleNamespace, seed: int
) -> None:
    """Margins of 0 and 2 only, and a final for every draw."""
    judge = kit.ScriptedJudge(lambda text: 2.0 if "high" in text else 0.0)
    lines = reasons(kit, "high a", "high b", "low c", "low d")
    generator = kit.ScriptedGenerator({"</REASONING>": lines})
    wanted = {"tournament": "bracket", "early_stop_margin": 2.0, "seed": seed}
    await decide(kit, generator, judge, 4, **wanted)
    assert len(judge.requests) == 2


@pytest.mark.parametrize("form", ["round_robin", "bracket", "finals", "chain", "arrival"])
async def test_an_adaptive_budget_stops_at_two_where_one_of_them_clearly_wins(
    kit: SimpleNamespace, form: str
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    generator = kit.ScriptedGenerator({"</REASONING>": reasons(kit, 1, 9)})
    wanted = {"tournament": form, "budget": "adaptive", "early_stop_margin": 5.0}
    decided = await decide(kit, generator, judge, 8, **wanted)
    assert [len(r.seeds) for r in generator.requests] == [2]
    assert (decided.winner, decided.planned, len(judge.requests)) == (1, 8, 1)
    assert [(m.a, m.b) for m in decided.matches] in ([(0, 1)], [(1, 0)])


async def test_two_that_say_the_same_need_neither_more_nor_a_judge(kit: SimpleNamespace) -> None:
    generator = kit.ScriptedGenerator({"</REASONING>": reasons(kit, 1, 1)})
    wanted = {"budget": "adaptive", "early_stop_margin": 5.0}
    decided = await decide(kit, generator, kit.FailingJudge(), 8, **wanted)
    assert (len(decided.candidates), decided.usage.judge_calls) == (2, 0)


async def test_where_two_disagree_the_others_are_drawn_and_no_pair_is_asked_twice(
    kit: SimpleNamespace,
) -> None:
    generator, judge = kit.SeededGenerator(), kit.ScriptedJudge(lambda text: len(text) / 100)
    wanted = {"tournament": "round_robin", "budget": "adaptive", "early_stop_margin": 5.0}
    search, told = kit.search(generator, judge, kit.settings(candidates=4, **wanted))
    await contest(search, search.spot(Stage.SUMMARY), 4)
    (decided,) = told.stages
    first, second = generator.requests
    assert (len(first.seeds), len(second.seeds)) == (2, 2)
    assert [len(r.pairs) for r in judge.requests] == [1, 5]
    assert len(decided.matches) == 6 and {m.round for m in decided.matches} == {1}

    fixed = kit.SeededGenerator()
    search, _ = kit.search(fixed, judge, kit.settings(candidates=4, tournament="round_robin"))
    await contest(search, search.spot(Stage.SUMMARY), 4)
    assert fixed.requests[0].seeds == first.seeds + second.seeds  # the same candidates


async def test_conclusions_that_say_the_same_agree(kit: SimpleNamespace) -> None:
    said = [kit.Say(f"<CONCLUSION>{body}</CONCLUSION>") for body in ("Red", " red.")]
    generator = kit.ScriptedGenerator({"</CONCLUSION>": said})
    wanted = kit.settings(candidates=8, budget="adaptive", early_stop_margin=5.0)
    search, told = kit.search(generator, kit.ScriptedJudge(lambda text: 0.0), wanted)
    await contest(search, search.spot(Stage.CONCLUSION, "..."), 8)
    assert len(told.stages[0].candidates) == 2


async def test_a_rule_loss_settles_two_and_two_of_them_do_not(kit: SimpleNamespace) -> None:
    wanted = {"budget": "adaptive", "early_stop_margin": 5.0}
    lines = [kit.Say("junk"), *reasons(kit, 1)]
    generator = kit.ScriptedGenerator({"</REASONING>": lines})
    assert (await decide(kit, generator, None, 4, **wanted)).winner == 1
    assert len(generator.requests) == 1

    class Learning(type(generator)):  # type: ignore[misc]
        """Junk first, then what has its tags."""

        async def propose(self, request: Any) -> Any:
            self.script = {"</REASONING>": reasons(kit, 3, 4) if self.requests else lines[:1] * 2}
            async for item in super().propose(request):
                yield item

    generator = Learning({})
    judge = kit.ScriptedJudge(kit.by_number)
    assert (await decide(kit, generator, judge, 4, **wanted)).winner == 3


@pytest.mark.parametrize("method", ["greedy", "majority", "retrace"])
def test_methods_without_tournaments_ignore_what_concerns_them(
    kit: SimpleNamespace, method: str
) -> None:
    wanted = kit.settings(method=method, budget="adaptive", early_stop_margin=1.0)
    assert not wanted.plays
