from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from stagebeam.search.contest import contest
from stagebeam.search.trace import StageTrace


async def decide(kit: SimpleNamespace, key: str = "key", **changed: Any) -> StageTrace:
    """Five answers, 0 to 4, of which the judge likes the higher and the generator the lower."""
    lines = [kit.Say(kit.staged(str(i)), logprob=-float(i + 1)) for i in range(5)]
    generator = kit.ScriptedGenerator({"</CONCLUSION>": lines})
    judge = kit.ScriptedJudge(kit.by_number)
    settings = kit.settings(method="best_of_n", **{"candidates": 5, **changed})
    search, told = kit.search(generator, judge, settings)
    search.key = key
    await contest(search, search.spot(None), settings.n)
    (decided,) = told.stages
    return decided


def pairs(decided: StageTrace) -> list[tuple[int, int]]:
    return [(m.a, m.b) for m in decided.matches]


async def test_the_settings_tie_margin_is_the_tournaments(kit: SimpleNamespace) -> None:
    assert (await decide(kit)).winner == 4
    assert (await decide(kit, tie_margin=100.0)).winner == 0


async def test_the_draw_follows_from_run_seed_and_question(kit: SimpleNamespace) -> None:
    first = pairs(await decide(kit, tournament="chain"))
    assert pairs(await decide(kit, tournament="chain")) == first
    assert pairs(await decide(kit, tournament="chain", seed=1)) != first
    assert pairs(await decide(kit, "another", tournament="chain")) != first
