"""The judge that writes its verdicts, over a generator with a script."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.inference.text_judge import (
    Orders,
    TextJudge,
    TextVerdict,
    check_messages,
    read_check,
    read_verdict,
    text_messages,
)
from stagebeam.inference.types import (
    Candidate,
    GenerateRequest,
    JudgeRequest,
    Prompt,
    Usage,
    Verdict,
)
from stagebeam.records import Message
from stagebeam.stages import Stage, wrap

PREFIX = " ".join(
    [wrap(Stage.SUMMARY, "THE PLAN"), wrap(Stage.CAPTION, "A CAT"), wrap(Stage.REASONING, "SO")]
)
_SHOWN = re.compile(r"Response 1:\n(.*?)\n\nResponse 2:\n(.*?)\n\n", re.S)

Reply = Callable[[str, str], str]  # from the two responses shown


@dataclass
class Writer:
    """Writes what `compares` and `checks` say; keeps every request."""

    compares: Reply = lambda first, second: "Since it is so, I choose response 1."
    checks: Callable[[str], str] = lambda text: "correct"
    fingerprint: str = "writer"
    requests: list[GenerateRequest] = field(default_factory=list)
    closed: bool = False

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.requests.append(request)
        asked = request.prompt.messages[-1].text
        shown = _SHOWN.search(asked)
        text = self.compares(shown[1], shown[2]) if shown else self.checks(asked)
        tokens = len(text.split())
        yield Candidate(0, text, tokens, 0.0, "end")
        yield Usage(prefill_tokens=100, decode_tokens=tokens, sequential_passes=tokens)

    async def check(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def judge_of(writer: Writer, orders: Orders = "both") -> TextJudge:
    return TextJudge(writer, orders=orders, max_new_tokens=200)


def request_of(stage: Stage | None = Stage.CAPTION, *pairs: tuple[int, int]) -> JudgeRequest:
    prompt = Prompt((Message("user", "What is it?"),), (b"image",))
    candidates = ("good", "bad", "ugly")
    return JudgeRequest(prompt, stage, PREFIX, candidates, pairs or ((0, 1),))


def prefers(word: str) -> Reply:
    return lambda first, second: (
        f"Since {word} is better, I choose response {1 if first == word else 2}."
    )


def chooses(number: int) -> Reply:
    return lambda first, second: f"Since it is number {number}, I choose response {number}."


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Since it counts, I choose response 1.", TextVerdict("it counts", 1)),
        (
            "  since a, b and\nc agree, I choose response 2\n",
            TextVerdict("a, b and c agree", 2),
        ),
        ("Since it is so I choose response 2.", TextVerdict("it is so", 2)),
        ("I choose response 1.", None),
        ("Since , I choose response 1.", None),
        ("Since it counts, I choose response 3.", None),
        ("Since it counts, I choose response 12.", None),
        ("Since it counts, I choose response 1 or 2.", None),
        ("Well. Since it counts, I choose response 1.", None),
        ("Since it counts, I choose response 1. I am sure.", None),
        ("Since I choose response 2 at first, I choose response 1.", None),
        ("Since [reason], I choose response [1].", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_only_from_a_sentence_of_the_form(
    reply: str, verdict: TextVerdict | None
) -> None:
    assert read_verdict(reply) == verdict


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    read_check(text)
    assert read_verdict(text) is None or "response" in text.casefold()


@pytest.mark.parametrize(
    ("reply", "correct"),
    [("correct", True), (" **Incorrect**.\n", False), ("not correct", None), ("", None)],
)
def test_a_check_is_one_word(reply: str, correct: bool | None) -> None:
    assert read_check(reply) is correct


async def test_both_orders_that_agree_decide() -> None:
    writer = Writer(prefers("good"))
    judgement = await judge_of(writer).compare(request_of(None, (0, 1), (1, 0)))
    assert judgement.verdicts == (Verdict(1, 1), Verdict(-1, -1))
    assert judgement.explanations == ("good is better", "good is better")
    assert len(writer.requests) == 4


async def test_a_preference_for_a_place_is_a_tie() -> None:
    for number in (1, 2):
        judgement = await judge_of(Writer(chooses(number))).compare(request_of())
        assert judgement.verdicts[0].margin == 0
        assert judgement.verdicts[0].forward == -judgement.verdicts[0].backward != 0
        assert judgement.explanations == ("",)
        assert judgement.usage.judge_failures == 0


async def test_one_order_asks_once_as_the_paper() -> None:
    writer = Writer(chooses(2))
    judgement = await judge_of(writer, "one").compare(request_of())
    assert judgement.verdicts == (Verdict(-1, -1),)
    assert judgement.explanations == ("it is number 2",)
    assert len(writer.requests) == 1


@pytest.mark.parametrize("orders", ["one", "both"])
async def test_a_reply_that_cannot_be_read_is_counted_and_a_tie(orders: Orders) -> None:
    def says(first: str, second: str) -> str:
        return "Hmm." if first == "good" else prefers("good")(first, second)

    judgement = await judge_of(Writer(says), orders).compare(request_of(None, (0, 1), (2, 1)))
    assert judgement.verdicts[0] == Verdict(0, 0)
    assert judgement.usage.judge_failures == 1
    assert judgement.explanations[0] == ""


async def test_reasoning_is_checked_by_its_text_alone_before_it_is_compared() -> None:
    writer = Writer(prefers("good"), lambda asked: "incorrect" if "bad" in asked else "correct")
    judgement = await judge_of(writer).compare(request_of(Stage.REASONING, (1, 0), (0, 2), (2, 1)))
    assert [v.margin for v in judgement.verdicts] == [-1, 1, 1]
    checks = [r for r in writer.requests if not r.prompt.images]
    assert len(checks) == 3, "each candidate once"
    assert len(writer.requests) == 5, "only the pair of two correct ones is compared"
    assert all("A CAT" in r.prompt.messages[-1].text for r in writer.requests)
    assert "only response 2 passes" in judgement.explanations[0]


async def test_a_check_that_cannot_be_read_leaves_it_to_the_comparison() -> None:
    writer = Writer(prefers("good"), lambda asked: "maybe" if "good" in asked else "incorrect")
    judgement = await judge_of(writer).compare(request_of(Stage.REASONING))
    assert judgement.verdicts == (Verdict(1, 1),)
    assert judgement.usage.judge_failures == 1


async def test_only_reasoning_is_checked() -> None:
    for stage in (Stage.SUMMARY, Stage.CAPTION, Stage.CONCLUSION, None):
        writer = Writer(checks=lambda asked: "incorrect")
        await judge_of(writer).compare(request_of(stage))
        assert all(r.prompt.images for r in writer.requests) and len(writer.requests) == 2


async def test_what_was_written_and_read_is_the_judges() -> None:
    writer = Writer(prefers("good"))
    judgement = await judge_of(writer).compare(request_of(Stage.REASONING, (0, 1), (0, 2)))
    assert judgement.usage == Usage(
        judge_tokens=3 * 101 + 4 * 108,
        judge_calls=1,
        sequential_passes=1 + 8,  # all checks at once, then all comparisons
    )


async def test_verdicts_are_greedy_and_end_with_the_choice() -> None:
    writer = Writer()
    await judge_of(writer).compare(request_of())
    for asked in writer.requests:
        assert asked.sampling.temperature == 0 and asked.sampling.max_new_tokens == 200
        assert asked.stops == ("I choose response 1.", "I choose response 2.")
        assert asked.prefix == "" and len(asked.seeds) == 1


def test_a_stage_is_judged_by_its_own_criteria_and_shown_what_it_may_see() -> None:
    texts = {
        stage: text_messages(request_of(stage), "FIRST", "SECOND")[-1].text
        for stage in (*Stage, None)
    }
    assert len({text.split("SECOND")[1] for text in texts.values()}) == 5
    for stage, text in texts.items():
        assert text.index("What is it?") < text.index("FIRST") < text.index("SECOND")
        assert "I choose response 1." in text and "I choose response 2." in text
        assert ("A CAT" in text) == (stage in (Stage.REASONING, Stage.CONCLUSION))
        assert ("\nSO" in text) == (stage is Stage.CONCLUSION)
        assert "THE PLAN" not in text
    checked = check_messages(request_of(Stage.REASONING), "FIRST")[-1].text
    assert "A CAT" in checked and "FIRST" in checked


def test_earlier_turns_stay() -> None:
    turns = (Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"))
    request = replace(request_of(), prompt=Prompt(turns))
    *earlier, last = text_messages(request, "a", "b")
    assert tuple(earlier) == turns[:2] and "Q2" in last.text and last.role == "user"


async def test_an_error_of_the_generator_is_the_calls() -> None:
    def breaks(first: str, second: str) -> str:
        raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="the machine is gone"):
        await judge_of(Writer(breaks)).compare(request_of())


def test_the_fingerprint_tells_the_mode_and_closing_closes_the_generator() -> None:
    writer = Writer()
    judge = judge_of(writer, "one")
    assert judge.fingerprint == "text-one-writer"
    judge.close()
    assert writer.closed
