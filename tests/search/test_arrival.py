"""Judging beside decoding: what follows from the order of arrival, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import Candidate, GenerateRequest, Judgement, JudgeRequest, Usage
from stagebeam.search.contest import contest
from stagebeam.search.state import SearchError
from stagebeam.search.trace import StageTrace
from stagebeam.stages import Stage, wrap


@dataclass
class Arriving:
    """Says the lines in this order, with time for the judge between them."""

    lines: Sequence[Any]
    order: Sequence[int]
    asked: list[tuple[int, int]] = field(default_factory=list)  # (arrived, judge calls) so far
    judge: Any = None
    closed: bool = False

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        try:
            for position, index in enumerate(self.order):
                yield self.lines[index].candidate(index)
                for _ in range(20):
                    await asyncio.sleep(0)
                self.asked.append((position + 1, len(self.judge.requests)))
            yield Usage(decode_tokens=12, sequential_passes=7)
        finally:
            self.closed = True


def reasons(kit: SimpleNamespace, *bodies: object, **say: Any) -> list[Any]:
    return [kit.Say(wrap(Stage.REASONING, str(body)), **say) for body in bodies]


async def decide(
    kit: SimpleNamespace, generator: Any, judge: Any, n: int, **changed: Any
) -> StageTrace:
    wanted = kit.settings(candidates=n, tournament="arrival", **changed)
    search, told = kit.search(generator, judge, wanted)
    await contest(search, search.spot(Stage.REASONING), n)
    (decided,) = told.stages
    return decided  # type: ignore[no-any-return]


async def test_a_newcomer_meets_all_that_are_there_while_others_still_come(
    kit: SimpleNamespace,
) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    generator = Arriving(reasons(kit, 1, 2, 3, 4), (2, 0, 3, 1), judge=judge)
    decided = await decide(kit, generator, judge, 4)
    assert generator.asked == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert [len(request.pairs) for request in judge.requests] == [1, 2, 3]
    assert (decided.winner, len(decided.matches)) == (3, 6)


@pytest.mark.parametrize("order", list(permutations(range(4))))
async def test_winner_matches_and_calls_do_not_depend_on_the_order(
    kit: SimpleNamespace, order: tuple[int, ...]
) -> None:
    """Ties among them, copies, a biased judge, and votes that are only known at the end."""
    lines = reasons(kit, "a 1", "b 1", "c 1", "b 1")

    async def decided_in(order: Sequence[int]) -> tuple[StageTrace, int]:
        judge = kit.ScriptedJudge(kit.by_number, bias=2.0)
        decided = await decide(kit, Arriving(lines, order, judge=judge), judge, 4)
        return decided, len(judge.requests)

    one, calls = await decided_in(order)
    other, other_calls = await decided_in(range(4))
    still = {"usage": other.usage}
    assert one.model_copy(update=still) == other
    assert (one.winner, calls) == (1, other_calls)
    assert one.usage.judge_calls == other.usage.judge_calls == 2
    assert one.usage.sequential_passes == other.usage.sequential_passes


async def test_it_decides_as_a_round_robin_does(kit: SimpleNamespace) -> None:
    lines = reasons(kit, 3, 1, 4, 1.5, 9)
    judge = kit.ScriptedJudge(lambda text: float(text.split()[1]))
    arrival = await decide(kit, Arriving(lines, (4, 2, 0, 1, 3), judge=judge), judge, 5)
    search, told = kit.search(
        Arriving(lines, range(5), judge=judge), judge, kit.settings(tournament="round_robin")
    )
    await contest(search, search.spot(Stage.REASONING), 5)
    (barrier,) = told.stages
    assert (arrival.winner, arrival.matches) == (barrier.winner, barrier.matches)


async def test_passes_are_decoding_and_the_longest_call_never_more_than_the_parts(
    kit: SimpleNamespace,
) -> None:
    judge = kit.ScriptedJudge(kit.by_number, usage=Usage(sequential_passes=5))
    generator = Arriving(reasons(kit, 1, 2, 3), range(3), judge=judge)
    decided = await decide(kit, generator, judge, 3)
    assert len(judge.requests) == 2
    assert decided.usage.sequential_passes == 7 + 5 <= 7 + 2 * 5


async def test_copies_and_rule_losses_open_no_call(kit: SimpleNamespace) -> None:
    judge = kit.ScriptedJudge(kit.by_number)
    lines = [*reasons(kit, 1, 1), kit.Say("junk"), *reasons(kit, 2)]
    decided = await decide(kit, Arriving(lines, range(4), judge=judge), judge, 4)
    assert [len(request.pairs) for request in judge.requests] == [1]
    assert [(m.a, m.b, m.decided_by) for m in decided.matches] == [
        (0, 2, "rule"),
        (0, 3, "margin"),
    ]


async def test_a_wide_match_ends_the_drawing_and_this_does_depend_on_the_order(
    kit: SimpleNamespace,
) -> None:
    """The other side of `early_stop_margin`: who comes first may win it."""
    lines = reasons(kit, 0, 10, 30, 31)

    async def first_of(order: Sequence[int]) -> tuple[StageTrace, Arriving]:
        judge = kit.ScriptedJudge(kit.by_number)
        generator = Arriving(lines, order, judge=judge)
        return await decide(kit, generator, judge, 4, early_stop_margin=5.0), generator

    decided, generator = await first_of((0, 1, 2, 3))
    assert decided.winner == 1 and [c.index for c in decided.candidates] == [0, 1]
    assert generator.closed and decided.planned == 4
    # Three tokens each came; the two under way had about as many.
    assert decided.usage.decode_tokens == 4 * 3
    other, _ = await first_of((3, 2, 0, 1))
    assert other.winner == 3


async def test_a_winner_that_came_before_its_lower_copy_is_named_by_that(
    kit: SimpleNamespace,
) -> None:
    lines = reasons(kit, 9, 1, 9)
    judge = kit.ScriptedJudge(kit.by_number)
    generator = Arriving(lines, (2, 0, 1), judge=judge)
    decided = await decide(kit, generator, judge, 3, early_stop_margin=5.0)
    assert decided.winner == 0 and decided.candidates[2].merged_into == 0


async def test_a_judge_that_breaks_its_protocol_is_an_error_and_stops_the_generator(
    kit: SimpleNamespace,
) -> None:
    class Judge:
        requests: tuple[()] = ()

        async def compare(self, request: JudgeRequest) -> Judgement:
            return Judgement((), Usage())

    generator = Arriving(reasons(kit, 1, 2, 3), range(3), judge=Judge())
    with pytest.raises(SearchError, match="0 verdicts for 1 pairs"):
        await decide(kit, generator, Judge(), 3)
    assert generator.closed


async def test_cancelling_ends_the_generator_and_every_judge_call(kit: SimpleNamespace) -> None:
    started, stopped = [], []

    class Hanging:
        requests: tuple[()] = ()

        async def compare(self, request: JudgeRequest) -> Judgement:
            started.append(len(request.pairs))
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append(len(request.pairs))
            raise AssertionError

    class Endless(Arriving):
        async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
            try:
                for index in range(3):
                    yield self.lines[index].candidate(index)
                await asyncio.Event().wait()
            finally:
                self.closed = True

    generator = Endless(reasons(kit, 1, 2, 3, 4), range(4), judge=Hanging())
    task = asyncio.create_task(decide(kit, generator, Hanging(), 4))
    while len(started) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert generator.closed and sorted(stopped) == [1, 2]
