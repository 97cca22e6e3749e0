from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stagebeam.records import Message
from stagebeam.search import Trace, answer
from stagebeam.search.preferences import Pair, pairs_of
from stagebeam.search.seeds import image_digest
from stagebeam.stages import STAGES, Stage

SUMMARY, *LATER = STAGES


async def trace_of(
    kit: SimpleNamespace,
    summaries: list[str],
    judge: Any,
    **changed: Any,
) -> Trace:
    """These summaries, and one candidate of everything after that."""
    script = {
        SUMMARY.close_tag: [kit.Say(text) for text in summaries],
        **{s.close_tag: [kit.Say(f" <{s}> 0 </{s}>")] for s in LATER},
    }
    wanted = kit.settings(candidates={"SUMMARY": len(summaries)}, **changed)
    trace: Trace = await answer(
        kit.ask(), kit.ScriptedGenerator(script), judge, wanted, generator_id="g1", judge_id="j1"
    )
    return trace


def said(*numbers: object) -> list[str]:
    return [f"<SUMMARY> {number} </SUMMARY>" for number in numbers]


async def test_the_winner_is_better_than_each_that_it_beat(kit: SimpleNamespace) -> None:
    trace = await trace_of(kit, said(1, 5, 3), kit.ScriptedJudge(kit.by_number))
    one, five, three = said(1, 5, 3)
    question = (Message("user", kit.ask().messages[0].text),)
    assert list(pairs_of(trace)) == [
        Pair(
            trace=trace.id,
            messages=question,
            image_digests=(image_digest(b"image"),),
            stage=Stage.SUMMARY,
            prefix="",
            chosen=five,
            rejected=rejected,
            margin=margin,
        )
        for rejected, margin in ((one, 4.0), (three, 2.0))
    ]


async def test_the_prefix_is_what_was_chosen_before(kit: SimpleNamespace) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    trace = await answer(
        kit.ask(),
        kit.SeededGenerator(),
        judge,
        kit.settings(candidates=2),
        generator_id="g1",
        judge_id="j1",
    )
    prefix = ""
    for stage, pair in zip(trace.stages, pairs_of(trace), strict=True):
        assert (pair.stage, pair.prefix) == (stage.stage, prefix)
        assert pair.chosen == stage.candidates[stage.winner].text
        prefix += pair.chosen


async def test_ties_copies_and_losses_by_rule_are_left_out(kit: SimpleNamespace) -> None:
    texts = [*said(5, 5, 2), "<SUMMARY> 9 ", *said(5.0)]

    def score(text: str) -> float:
        return 2.0 if "2" in text else 5.0

    trace = await trace_of(kit, texts, kit.ScriptedJudge(score), tournament="round_robin")
    (pair,) = pairs_of(trace)
    assert (pair.chosen, pair.rejected) == (texts[0], texts[2])


async def test_only_those_that_the_winner_met_count(kit: SimpleNamespace) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    trace = await trace_of(kit, said(1, 2, 3, 4), judge, tournament="bracket")
    met = {m.a + m.b - 3 for m in trace.stages[0].matches if 3 in (m.a, m.b)}
    rejected = {said(n + 1)[0] for n in met}
    assert {pair.rejected for pair in pairs_of(trace)} == rejected and len(rejected) == 2


async def test_a_match_that_the_judge_did_not_decide_says_nothing(kit: SimpleNamespace) -> None:
    trace = await trace_of(kit, said(1, 2), kit.FailingJudge())
    assert list(pairs_of(trace)) == []


async def test_pairs_closer_than_asked_for_are_left_out(kit: SimpleNamespace) -> None:
    trace = await trace_of(kit, said(1, 5, 3), kit.ScriptedJudge(kit.by_number))
    assert [pair.margin for pair in pairs_of(trace, 2.0)] == [4.0, 2.0]
    assert [pair.margin for pair in pairs_of(trace, 2.1)] == [4.0]


async def test_scores_compare_candidates_of_one_parent(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    wanted = kit.settings(method="retrace", candidates=4, calibration=kit.calibration(tmp_path))
    trace = await answer(
        kit.ask(), kit.SeededGenerator(), judge, wanted, generator_id="g1", judge_id="j1"
    )
    pairs = list(pairs_of(trace))
    assert {pair.stage for pair in pairs} == set(STAGES)
    for stage in trace.stages:
        winner = stage.candidates[stage.winner]
        alike = [c for c in stage.candidates if c.parent == winner.parent and c is not winner]
        worse = {c.text for c in alike if c.score < winner.score}
        mine = [pair for pair in pairs if pair.stage == stage.stage]
        assert {pair.rejected for pair in mine} == worse
        assert all(pair.margin > 0 for pair in mine)


async def test_whole_answers_and_sentences_are_no_stages(kit: SimpleNamespace) -> None:
    for method in ("best_of_n", "sentence_beam"):
        trace = await answer(
            kit.ask(),
            kit.SeededGenerator(),
            kit.ScriptedJudge(kit.by_number),
            kit.settings(method=method),
            generator_id="g1",
            judge_id="j1",
        )
        assert any(stage.matches for stage in trace.stages)
        assert list(pairs_of(trace)) == []
