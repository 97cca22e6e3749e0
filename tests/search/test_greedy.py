from __future__ import annotations

from types import SimpleNamespace

from stagebeam.search.greedy import greedy


async def test_greedy_is_one_call_at_temperature_zero_for_a_whole_answer(
    kit: SimpleNamespace,
) -> None:
    generator = kit.ScriptedGenerator({"</CONCLUSION>": [kit.Say(kit.staged("2"))]})
    settings = kit.settings(method="greedy", candidates=8, temperature=0.9)
    stages = await kit.decisions(greedy, generator, None, settings)
    (request,) = generator.requests
    assert (request.prefix, request.stops, len(request.seeds)) == ("", ("</CONCLUSION>",), 1)
    assert request.sampling.temperature == 0
    (only,) = stages
    assert (only.stage, only.winner, only.matches) == ("ANSWER", 0, ())
    assert only.candidates[0].text == kit.staged("2") and only.candidates[0].valid
