import asyncio
from math import log

import pytest

from stagebeam.evaluation.judge_card import Judged, JudgePair, card_of, judge_card
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


def of_lengths(better: int, worse: int, margin: float) -> Judged:
    """A pair whose better candidate stands first, and the margin in its favour."""
    known = JudgePair(PROMPT, None, "", ("b" * better, "w" * worse), 0)
    return Judged(known, Verdict(margin, margin))


def test_the_effect_of_length_is_told_apart_from_how_often_the_longer_is_better():
    judged = [
        *[of_lengths(9, 5, 1.0)] * 3,  # the longer one wins and is better
        of_lengths(9, 5, -1.0),
        *[of_lengths(5, 9, -1.0)] * 2,  # the longer one wins and is worse
        of_lengths(5, 9, 0.0),  # a tie: nobody wins
        of_lengths(7, 7, 1.0),
    ]
    card = card_of(judged, 0, 0)
    assert card.longer_share == pytest.approx(5 / 6)
    assert card.better_longer is not None and card.better_shorter is not None
    assert (card.better_longer.correct, card.better_longer.pairs) == (3, 4)
    assert (card.better_shorter.correct, card.better_shorter.pairs) == (0, 3)


def test_without_a_pair_of_unlike_length_its_effect_is_not_known():
    card = card_of([of_lengths(5, 5, 1.0)], 0, 0)
    assert (card.longer_share, card.better_longer, card.better_shorter) == (None, None, None)


def test_the_longer_ones_share_sees_the_second_candidate_too():
    second = JudgePair(PROMPT, None, "", ("w", "better"), 1)
    card = card_of([Judged(second, Verdict(-2.0, -1.0))], 0, 0)
    assert (card.accuracy, card.longer_share) == (1, 1)


def test_calibration_bins_by_size_of_the_margin_and_leaves_ties_out():
    sure, unsure = log(9), log(1.5)  # 90 and 60 percent
    judged = [
        *[of_lengths(5, 5, sure)] * 18,
        *[of_lengths(5, 5, -sure)] * 2,
        *[of_lengths(5, 5, unsure)] * 8,
        *[of_lengths(5, 5, -unsure)] * 12,
        *[of_lengths(5, 5, 0.0)] * 5,
    ]
    card = card_of(judged, 0, 0)
    assert [(b.pairs, b.accuracy) for b in card.calibration] == [(20, 0.4), (20, 0.9)]
    assert [b.confidence for b in card.calibration] == [pytest.approx(0.6), pytest.approx(0.9)]
    assert card.calibration[0].high < card.calibration[1].low
    assert card.calibration_error == pytest.approx(0.1)


def test_few_pairs_make_one_bin_and_none_makes_none():
    assert len(card_of([of_lengths(5, 5, 1.0)] * 3, 0, 0).calibration) == 1
    tied = card_of([of_lengths(5, 5, 0.0)], 0, 0)
    assert tied.calibration == () and tied.calibration_error is None


async def test_no_more_pairs_are_asked_at_once_than_allowed():
    judge = Listed({str(i): (1, 1) for i in range(20)})
    await judge_card(judge, [pair(str(i), 0) for i in range(20)], concurrency=3)
    assert judge.most == 3


async def test_no_pairs_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        await judge_card(Listed({}), [])
