import asyncio

import pytest

from stagebeam.evaluation.judge_card import JudgePair, judge_card
from stagebeam.inference.types import Judgement, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.records import Message
from stagebeam.stages import Stage

PROMPT = Prompt((Message("user", "?"),))


class Listed:
    """Verdicts by the first candidate's text; counts how many calls ran at once."""

    def __init__(self, verdicts: dict[str, tuple[float, float]]) -> None:
        self.verdicts, self.running, self.most = verdicts, 0, 0

    async def compare(self, request: JudgeRequest) -> Judgement:
        assert request.pairs == ((0, 1),)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        verdict = Verdict(*self.verdicts[request.candidates[0]])
        return Judgement((verdict,), Usage(judge_tokens=10))


def pair(name: str, better: int, stage: Stage | None = Stage.REASONING, category=None) -> JudgePair:
    return JudgePair(PROMPT, stage, "", (name, f"not {name}"), better, category)


async def test_accuracy_follows_the_known_better_one_overall_and_by_stage_and_category():
    judge = Listed({"a": (2, 1), "b": (-3, -1), "c": (1, 1), "d": (-1, -2)})
    card = await judge_card(
        judge,
        [
            pair("a", 0, category="count"),
            pair("b", 1, category="count"),
            pair("c", 1, Stage.CAPTION),
            pair("d", 1, None),
        ],
    )
    assert (card.correct, card.pairs, card.accuracy) == (3, 4, 0.75)
    assert card.interval[0] < 0.75 < card.interval[1]
    assert {k: (s.correct, s.pairs) for k, s in card.by_stage.items()} == {
        "REASONING": (2, 2),
        "CAPTION": (0, 1),
        "ANSWER": (1, 1),
    }
    assert {k: (s.correct, s.pairs) for k, s in card.by_category.items()} == {"count": (2, 2)}
    assert card.mean_margin == pytest.approx((1.5 + 2 - 1 + 1.5) / 4)
    assert card.judge_tokens == 10


async def test_a_judge_that_always_takes_the_first_is_inconsistent_and_says_so():
    judge = Listed({"a": (3, -1), "b": (1, -3)})
    card = await judge_card(judge, [pair("a", 0), pair("b", 0)])
    assert card.swap_consistency == 0
    assert card.first_position_share == 1
    assert card.accuracy == 0.5  # the mean of both orders still decides


async def test_an_unbiased_judge_is_consistent_and_takes_the_first_half_the_time():
    judge = Listed({"a": (2, 2), "b": (-1, -1)})
    card = await judge_card(judge, [pair("a", 1), pair("b", 1)])
    assert card.swap_consistency == 1
    assert card.first_position_share == 0.5


async def test_a_tie_is_counted_and_is_not_right():
    judge = Listed({"a": (0.5, -0.5), "b": (0, 0), "c": (1, 1), "d": (5e-7, 5e-7)})
    card = await judge_card(judge, [pair(name, 0) for name in "abcd"])
    assert (card.ties, card.correct) == (3, 1)
    assert card.swap_consistency == 0.5


async def test_a_judge_that_never_decides_has_no_first_position_share():
    card = await judge_card(Listed({"a": (0, 0)}), [pair("a", 0)])
    assert card.first_position_share is None


async def test_no_more_pairs_are_asked_at_once_than_allowed():
    judge = Listed({str(i): (1, 1) for i in range(20)})
    await judge_card(judge, [pair(str(i), 0) for i in range(20)], concurrency=3)
    assert judge.most == 3


async def test_no_pairs_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        await judge_card(Listed({}), [])
