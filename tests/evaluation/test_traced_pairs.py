"""A judge's card out of searches that it decided."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_world import ScriptedGenerator, ScriptedJudge, World, example, searching

from stagebeam.evaluation.traced_pairs import card_of_traces
from stagebeam.records import Example
from stagebeam.search.trace import CandidateTrace, MatchTrace, StageTrace, Trace, UsageTrace
from stagebeam.stages import STAGES, Stage, render, wrap

GOLD = {s: f"gold {s.value.lower()}" for s in STAGES} | {Stage.CONCLUSION: "two"}


def scene(source: str = "scenes/count") -> Example:
    asked = example(1)
    answer = replace(asked.messages[1], text=render(GOLD))
    return replace(
        asked, source=source, answer="two", choices=(), messages=(asked.messages[0], answer)
    )


def match(a: int, b: int, forward: float, backward: float, by: str = "margin") -> MatchTrace:
    margin = (forward + backward) / 2
    return MatchTrace(
        round=0,
        a=a,
        b=b,
        forward=forward,
        backward=backward,
        margin=margin,
        winner=a if margin > 0 else b,
        decided_by=by,
    )


def stage(name: str, texts: list[str], winner: int, *matches: MatchTrace) -> StageTrace:
    candidates = tuple(
        CandidateTrace(index=i, text=t, tokens=5, logprob=-1, finish="stop", valid=True)
        for i, t in enumerate(texts)
    )
    return StageTrace(
        stage=name,
        planned=len(texts),
        candidates=candidates,
        matches=matches,
        winner=winner,
        usage=UsageTrace(),
    )


def trace(*stages: StageTrace) -> Trace:
    return Trace(
        id="t",
        messages=(),
        image_digests=(),
        method="stage_beam",
        candidates=2,
        tournament="round_robin",
        temperature=1,
        top_p=1,
        seed=0,
        generator="g",
        judge="j",
        stages=stages,
        text="",
        conclusion=None,
        problems=(),
        usage=UsageTrace(judge_tokens=60, seconds=2.0),
    )


def test_whole_answers_are_known_by_their_conclusions():
    right, wrong = render(GOLD), render({**GOLD, Stage.CONCLUSION: "six"})
    other = render({**GOLD, Stage.SUMMARY: "another way", Stage.CONCLUSION: "two"})
    found = trace(
        stage(
            "ANSWER",
            [right, other, wrong],
            0,
            match(0, 1, 9.0, 9.0),  # both right: nothing is known
            match(2, 0, -3.0, -1.0),
            match(1, 2, -5.0, -5.0),  # a second pair of the same question
        )
    )
    card = card_of_traces([(scene("photographs"), found)])
    assert card is not None
    assert (card.pairs, card.correct, card.mean_margin) == (1, 1, 2.0)
    assert set(card.by_stage) == {"ANSWER"} and set(card.by_category) == {"count"}
    assert (card.judge_tokens, card.seconds) == (20, 2)


def summaries(winner: int) -> StageTrace:
    texts = [wrap(Stage.SUMMARY, "not gold"), wrap(Stage.SUMMARY, GOLD[Stage.SUMMARY])]
    return stage("SUMMARY", texts, winner, match(0, 1, 1.0, -3.0))


def captions() -> StageTrace:
    texts = [wrap(Stage.CAPTION, GOLD[Stage.CAPTION]), wrap(Stage.CAPTION, "not gold")]
    return stage("CAPTION", texts, 0, match(0, 1, -2.0, -2.0))


def test_stages_of_scenes_are_known_as_long_as_those_before_are_gold():
    card = card_of_traces([(scene(), trace(summaries(winner=1), captions()))])
    assert card is not None
    assert {name: (s.correct, s.pairs) for name, s in card.by_stage.items()} == {
        "SUMMARY": (1, 1),
        "CAPTION": (0, 1),
    }
    assert card.swap_consistency == 0.5
    fault = card_of_traces([(scene(), trace(summaries(winner=0), captions()))])
    assert fault is not None and set(fault.by_stage) == {"SUMMARY"}


def test_stages_of_other_data_have_no_known_answer():
    assert card_of_traces([(scene("llava-cot"), trace(summaries(winner=1), captions()))]) is None


def test_what_a_rule_decided_was_not_judged():
    right, wrong = render(GOLD), "no tags at all"
    found = trace(stage("ANSWER", [right, wrong], 0, match(0, 1, 0.0, 0.0, "rule")))
    assert card_of_traces([(scene(), found)]) is None


async def test_a_real_search_gives_the_card_that_its_judge_deserves():
    world = World(tuple(example(number) for number in range(60)))
    cards = []
    for noise in (0.0, 50.0):
        judge = ScriptedJudge(world, noise=noise, bias=0.4)
        ask = searching(ScriptedGenerator(world), judge)
        answered = [(asked, await ask(asked, "best_of_n", 4)) for asked in world.examples]
        cards.append(card_of_traces(answered))
    perfect, blind = cards
    assert perfect is not None and blind is not None
    assert perfect.pairs == blind.pairs > 25
    assert perfect.accuracy > 0.95  # it does not know that "1" is option A
    assert blind.interval[0] < 0.5
    assert perfect.first_position_share == pytest.approx(0.5, abs=0.2)
