from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    Judgement,
    JudgeRequest,
    Usage,
    Verdict,
)
from stagebeam.search.contest import contest
from stagebeam.search.state import SearchError
from stagebeam.stages import Stage, wrap

FORMS = ("chain", "bracket", "round_robin", "finals", "arrival")
ROUNDS = ("chain", "bracket", "round_robin", "finals")  # with a barrier before each


@dataclass
class Lines:
    """A generator that says these, in this order, and counts nothing."""

    lines: Sequence[Any]

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        for index, line in enumerate(self.lines):
            yield line.candidate(index)


async def run(
    kit: SimpleNamespace,
    lines: Sequence[Any],
    judge: object,
    form: str = "round_robin",
    stage: Stage | None = Stage.REASONING,
    seed: int = 0,
    tie_margin: float = 1e-6,
    **changed: Any,
) -> SimpleNamespace:
    settings = kit.settings(
        candidates=len(lines), tournament=form, seed=seed, tie_margin=tie_margin, **changed
    )
    search, told = kit.search(Lines(lines), judge, settings)
    prefix = "" if stage is None else "<SUMMARY> so far </SUMMARY>"
    await contest(search, search.spot(stage, prefix), len(lines))
    (decided,) = told.stages
    merged = {c.index: c.merged_into for c in decided.candidates if c.merged_into is not None}
    usage = Usage(**decided.usage.model_dump(exclude={"seconds"}))
    return SimpleNamespace(
        winner=decided.winner, matches=decided.matches, merged_into=merged, usage=usage
    )


def reasons(kit: SimpleNamespace, *bodies: object, **say: Any) -> list[Any]:
    return [kit.Say(wrap(Stage.REASONING, str(body)), **say) for body in bodies]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("seed", range(5))
async def test_a_clear_best_wins_every_form_whatever_the_draw(
    kit: SimpleNamespace, form: str, n: int, seed: int
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    scores = [(7 * i + 3) % n for i in range(n)]  # each of 0 .. n-1 once, for these n
    outcome = await run(kit, reasons(kit, *scores), judge, form, seed=seed)
    assert outcome.winner == scores.index(max(scores))


@pytest.mark.parametrize(
    ("form", "n", "pairs_of_each_round"),
    [
        ("chain", 2, [1]),
        ("chain", 5, [1, 1, 1, 1]),
        ("bracket", 2, [1]),
        ("bracket", 4, [2, 1]),
        ("bracket", 5, [2, 1, 1]),
        ("bracket", 8, [4, 2, 1]),
        ("bracket", 9, [4, 2, 1, 1]),
        ("finals", 4, [6]),
        ("finals", 5, [1, 6]),
        ("finals", 8, [4, 6]),
        ("finals", 9, [6, 6]),
        ("finals", 16, [24, 6]),
        ("finals", 17, [1, 24, 6]),
        ("round_robin", 2, [1]),
        ("round_robin", 4, [6]),
    ],
)
async def test_each_round_is_one_judge_call_with_all_its_pairs(
    kit: SimpleNamespace, form: str, n: int, pairs_of_each_round: list[int]
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    outcome = await run(kit, reasons(kit, *range(n)), judge, form)
    assert [len(request.pairs) for request in judge.requests] == pairs_of_each_round
    rounds = [r for r, count in enumerate(pairs_of_each_round, 1) for _ in range(count)]
    assert [match.round for match in outcome.matches] == rounds
    assert outcome.usage == Usage(
        sequential_passes=len(pairs_of_each_round),
        judge_calls=len(pairs_of_each_round),
        judge_tokens=10 * len(pairs_of_each_round),
    )


async def test_the_judge_sees_stage_prefix_and_only_the_texts_that_play(
    kit: SimpleNamespace,
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    lines = reasons(kit, 1, 2, 3, 4)
    await run(kit, lines, judge, "bracket")
    first, final = judge.requests
    assert first.stage is Stage.REASONING and first.prefix == "<SUMMARY> so far </SUMMARY>"
    assert first.prompt == kit.ask()
    assert set(first.candidates) == {line.text for line in lines}
    assert len(final.candidates) == 2 and lines[3].text in final.candidates


async def test_in_a_chain_the_winner_meets_the_next(kit: SimpleNamespace) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    outcome = await run(kit, reasons(kit, *range(6)), judge, "chain", seed=3)
    for before, after in zip(outcome.matches, outcome.matches[1:], strict=False):
        assert after.a == before.winner
    met = [outcome.matches[0].a] + [match.b for match in outcome.matches]
    assert sorted(met) == list(range(6)) and met != list(range(6))


async def test_the_draw_follows_the_seed(kit: SimpleNamespace) -> None:
    async def pairs(seed: int) -> list[tuple[int, int]]:
        judge = kit.ScriptedJudge(kit.by_number)
        outcome = await run(kit, reasons(kit, *range(8)), judge, "bracket", seed=seed)
        return [(m.a, m.b) for m in outcome.matches]

    assert await pairs(1) == await pairs(1)
    assert await pairs(1) != await pairs(2)


async def test_a_constant_position_bias_changes_nothing_and_is_recorded(
    kit: SimpleNamespace,
) -> None:
    judge = kit.ScriptedJudge(kit.by_number, bias=50.0)
    outcome = await run(kit, reasons(kit, 1, 2), judge)
    (match,) = outcome.matches
    assert (match.a, match.b, match.forward, match.backward) == (0, 1, 49.0, -51.0)
    assert (match.margin, match.winner, match.decided_by) == (-1.0, 1, "margin")


class CircularJudge:
    """0 beats 1, 1 beats 2, 2 beats 0; the margins are given."""

    def __init__(self, *margins: float) -> None:
        self.margins = margins

    async def compare(self, request: JudgeRequest) -> Judgement:
        ab, bc, ca = self.margins
        by_pair = {(0, 1): ab, (1, 2): bc, (0, 2): -ca}
        return Judgement(tuple(Verdict(by_pair[p], by_pair[p]) for p in request.pairs), Usage())


@pytest.mark.parametrize(("margins", "winner"), [((3, 1, 2), 0), ((1, 3, 2), 1), ((2, 1, 3), 2)])
async def test_round_robin_breaks_equal_wins_by_the_sum_of_margins(
    kit: SimpleNamespace, margins: tuple[float, float, float], winner: int
) -> None:
    outcome = await run(kit, reasons(kit, "x", "y", "z"), CircularJudge(*margins))
    assert outcome.winner == winner


async def test_round_robin_puts_wins_before_margins(kit: SimpleNamespace) -> None:
    class Judge:
        async def compare(self, request: JudgeRequest) -> Judgement:
            by_pair = {(0, 1): 0.1, (0, 2): 0.1, (1, 2): 9.0}
            return Judgement(tuple(Verdict(by_pair[p], by_pair[p]) for p in request.pairs), Usage())

    outcome = await run(kit, reasons(kit, "x", "y", "z"), Judge())
    assert outcome.winner == 0


def indifferent(text: str) -> float:
    return 0.0


@pytest.mark.parametrize("form", FORMS)
async def test_a_tie_goes_to_the_text_that_was_said_more_often(
    kit: SimpleNamespace, form: str
) -> None:
    rare = kit.Say(wrap(Stage.REASONING, "rare"), logprob=-0.1)
    often = kit.Say(wrap(Stage.REASONING, "often"), logprob=-2.0)
    outcome = await run(kit, [rare, often, often], kit.ScriptedJudge(indifferent), form)
    (match,) = outcome.matches
    assert (outcome.winner, match.decided_by) == (1, "majority")
    assert outcome.merged_into == {2: 1}


async def test_a_tie_without_a_majority_goes_to_the_likelier_text_a_token(
    kit: SimpleNamespace,
) -> None:
    short = kit.Say(wrap(Stage.REASONING, "short"), logprob=-1.0)
    long = kit.Say(wrap(Stage.REASONING, "much much much longer"), logprob=-0.9)
    outcome = await run(kit, [short, long], kit.ScriptedJudge(indifferent))
    assert (outcome.winner, outcome.matches[0].decided_by) == (1, "logprob")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
async def test_a_full_tie_goes_to_the_lowest_index(
    kit: SimpleNamespace, form: str, seed: int
) -> None:
    lines = reasons(kit, "a", "b", "c", "d")
    outcome = await run(kit, lines, kit.ScriptedJudge(indifferent), form, seed=seed)
    assert outcome.winner == 0


async def test_margins_up_to_the_tie_margin_are_ties_and_larger_ones_are_not(
    kit: SimpleNamespace,
) -> None:
    better = kit.Say(wrap(Stage.REASONING, "2"), logprob=-5.0)
    likelier = kit.Say(wrap(Stage.REASONING, "1"), logprob=-1.0)
    judge = kit.ScriptedJudge(kit.by_number)  # the margin is 1
    tied = await run(kit, [better, likelier], judge, tie_margin=1.0)
    decided = await run(kit, [better, likelier], judge, tie_margin=0.99)
    assert (tied.winner, tied.matches[0].decided_by) == (1, "logprob")
    assert (decided.winner, decided.matches[0].decided_by) == (0, "margin")


async def test_conclusions_that_say_the_same_vote_together(kit: SimpleNamespace) -> None:
    said = ["Red", " blue.", "Blue"]
    lines = [kit.Say(f"<CONCLUSION>{body}</CONCLUSION>") for body in said]
    judge = kit.ScriptedJudge(indifferent)
    outcome = await run(kit, lines, judge, stage=Stage.CONCLUSION)
    assert outcome.winner == 1
    by_pair = {(m.a, m.b): m.decided_by for m in outcome.matches}
    assert by_pair == {(0, 1): "majority", (0, 2): "majority", (1, 2): "logprob"}


async def test_whole_answers_vote_with_their_conclusions(kit: SimpleNamespace) -> None:
    answers = [("1", "a"), ("2", "b"), ("2.", "c")]
    lines = [kit.Say(kit.staged(answer, thought)) for answer, thought in answers]
    outcome = await run(kit, lines, kit.ScriptedJudge(indifferent), stage=None)
    assert outcome.winner == 1


async def test_identical_candidates_are_judged_once(kit: SimpleNamespace) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    outcome = await run(kit, reasons(kit, 1, 2, 1, 2), judge)
    (request,) = judge.requests
    assert len(request.candidates) == 2 and request.pairs == ((0, 1),)
    assert outcome.merged_into == {2: 0, 3: 1} and outcome.winner == 1


@pytest.mark.parametrize("form", FORMS)
async def test_all_identical_needs_no_judge(kit: SimpleNamespace, form: str) -> None:
    outcome = await run(kit, reasons(kit, 1, 1, 1), None, form)
    assert (outcome.winner, outcome.matches, outcome.usage) == (0, (), Usage())


@pytest.mark.parametrize("form", FORMS)
async def test_a_candidate_without_its_tags_loses_by_rule_unseen_by_the_judge(
    kit: SimpleNamespace, form: str
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    broken = kit.Say("<REASONING> 99", logprob=-0.01, finish="length")
    outcome = await run(kit, [broken, *reasons(kit, 1, 2)], judge, form)
    (request,) = judge.requests
    assert broken.text not in request.candidates
    rule, judged = outcome.matches
    assert (rule.a, rule.b, rule.winner, rule.round, rule.decided_by) == (1, 0, 1, 0, "rule")
    assert (outcome.winner, judged.round, judged.decided_by) == (2, 1, "margin")


async def test_copies_without_tags_do_not_vote(kit: SimpleNamespace) -> None:
    cut = "<CONCLUSION> 3 </CONCLUSION> and"
    lines = [kit.Say(f"<CONCLUSION> {n} </CONCLUSION>", logprob=-float(n)) for n in (2, 3)]
    judge = kit.ScriptedJudge(indifferent)
    outcome = await run(kit, [*lines, kit.Say(cut), kit.Say(cut)], judge, stage=Stage.CONCLUSION)
    assert outcome.winner == 0


async def test_a_single_survivor_needs_no_judge(kit: SimpleNamespace) -> None:
    outcome = await run(kit, [kit.Say("junk"), *reasons(kit, 1), kit.Say("")], None)
    assert outcome.winner == 1
    assert [(m.a, m.b, m.decided_by) for m in outcome.matches] == [(1, 0, "rule"), (1, 2, "rule")]


async def test_if_none_has_its_tags_the_likeliest_a_token_goes_on(kit: SimpleNamespace) -> None:
    lines = [kit.Say("a", -2.0), kit.Say("b c d e", -1.0), kit.Say("f", -1.5)]
    outcome = await run(kit, lines, None)
    assert (outcome.winner, outcome.matches) == (1, ())


async def test_a_judge_that_counts_its_own_passes_is_not_counted_twice(
    kit: SimpleNamespace,
) -> None:
    one = Usage(judge_tokens=1, judge_calls=1, sequential_passes=1)
    many = Usage(judge_tokens=1, sequential_passes=30)
    for given, passes in ((one, 1), (many, 30)):
        judge = kit.ScriptedJudge(kit.by_number, usage=given)
        outcome = await run(kit, reasons(kit, 1, 2), judge)
        assert (outcome.usage.sequential_passes, outcome.usage.judge_calls) == (passes, 1)


async def test_a_judge_that_answers_other_pairs_than_asked_is_an_error(
    kit: SimpleNamespace,
) -> None:
    class Judge:
        async def compare(self, request: JudgeRequest) -> Judgement:
            return Judgement((Verdict(1.0, 1.0),), Usage())

    with pytest.raises(SearchError, match="1 verdicts for 3 pairs"):
        await run(kit, reasons(kit, 1, 2, 3), Judge())


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
async def test_a_margin_that_is_not_a_number_is_an_error(
    kit: SimpleNamespace, margin: float
) -> None:
    judge = kit.ScriptedJudge(indifferent, bias=0.0)
    judge.score = lambda text: margin if "1" in text else 0.0
    with pytest.raises(SearchError, match="REASONING 0 against 1 is not finite"):
        await run(kit, reasons(kit, 1, 2), judge)
