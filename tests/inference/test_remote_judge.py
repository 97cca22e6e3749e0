"""The judge behind an OpenAI-compatible server, against a local one with a script."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from chat_world import Body, Chat, chatting, judge_config, text_of

from stagebeam.inference.chat_server import ServerError
from stagebeam.inference.load import load_judge
from stagebeam.inference.remote_judge import RemoteJudge, option_log_odds
from stagebeam.inference.types import JudgeRequest, Prompt, Verdict
from stagebeam.inference.wording import verdict_messages
from stagebeam.records import Example, Message
from stagebeam.stages import Stage

MakeJudge = Callable[..., RemoteJudge]


@pytest.fixture
def judge_over() -> Iterator[MakeJudge]:
    with ExitStack() as stack:

        def make(chat: Chat, **server: Any) -> RemoteJudge:
            url = stack.enter_context(chatting(chat))
            judge = load_judge(judge_config(url, "remote", **server))
            assert isinstance(judge, RemoteJudge)
            return judge

        yield make


def request_of(*pairs: tuple[int, int], explain: bool = False) -> JudgeRequest:
    prompt = Prompt((Message("user", "What is it?"),))
    candidates = ("good", "bad", "ugly")
    return JudgeRequest(prompt, Stage.CAPTION, "", candidates, pairs or ((0, 1),), explain)


def likes_good(body: Body) -> dict[str, float]:
    """3 nats for `good`, and 1 for whatever stands first."""
    first = "Candidate 1: good" in text_of(body["messages"][-1])
    return {"1": -0.1, "2": -4.1} if first else {"2": -0.2, "1": -2.2}


async def test_the_margin_is_the_difference_of_log_probabilities_in_both_orders(
    judge_over: MakeJudge,
) -> None:
    judgement = await judge_over(Chat(likeliest=likes_good)).compare(request_of((0, 1), (1, 0)))
    straight, swapped = judgement.verdicts
    assert (straight.forward, straight.backward) == pytest.approx((4.0, 2.0))
    assert (swapped.forward, swapped.backward) == pytest.approx((-2.0, -4.0))
    assert judgement.usage.judge_calls == 1 and judgement.usage.judge_failures == 0
    assert judgement.usage.judge_tokens > 4
    assert judgement.usage.sequential_passes == 1


async def test_it_is_asked_what_the_verdict_judge_asks_for_one_token(
    judge_over: MakeJudge, scenes: list[Example]
) -> None:
    chat = Chat()
    example = next(e for e in scenes if e.images)
    prompt = Prompt(example.messages[:1], (example.images[0].bytes,))
    request = replace(request_of(), prompt=prompt)
    await judge_over(chat, top_logprobs=5).compare(request)
    bodies = sorted(chat.requests, key=lambda body: text_of(body["messages"][-1]))
    orders = sorted((("good", "bad"), ("bad", "good")))
    for body, shown in zip(bodies, orders, strict=True):
        expected = verdict_messages(request, *shown)
        assert [text_of(m) for m in body["messages"]] == [m.text for m in expected]
        assert body["messages"][-1]["content"][0]["type"] == "image_url"
        assert (body["max_tokens"], body["temperature"]) == (1, 0)
        assert body["logprobs"] is True and body["top_logprobs"] == 5


@pytest.mark.parametrize(
    ("likeliest", "log_odds"),
    [
        ([("1", -0.5), ("2", -1.5)], 1.0),
        ([("1", -0.5), ("The", -1.0), ("x", -6.0)], 5.5),  # 2 has at most x's
        ([("The", -0.1), ("2", -2.0), ("x", -6.0)], -4.0),
        ([("1", -2.0), (" 1", -2.0), ("2", -2.0)], math.log(2)),
        ([("The", -0.1), ("one", -3.0)], None),
        ([("12", -0.1)], None),
        ([("1", -0.1)], 0.0),  # nothing is known of the other
        ([("1", -9999.0), ("2", -0.1)], -9998.9),
        ([], None),
    ],
)
def test_an_option_that_is_not_given_is_bounded_by_the_least_likely_one(
    likeliest: list[tuple[str, float]], log_odds: float | None
) -> None:
    found = option_log_odds(likeliest)
    assert found == (None if log_odds is None else pytest.approx(log_odds))


async def test_without_either_option_there_is_no_verdict_and_that_is_counted(
    judge_over: MakeJudge,
) -> None:
    def odd(body: Body) -> dict[str, float]:
        first = "Candidate 1: good" in text_of(body["messages"][-1])
        return {"Well": -0.1} if first else {"2": -0.1, "1": -3.0}

    judgement = await judge_over(Chat(likeliest=odd)).compare(request_of((0, 1), (1, 2)))
    assert judgement.verdicts[0] == Verdict(0, 0)
    assert judgement.usage.judge_failures == 1


@pytest.mark.parametrize("logprobs", ["none", "refused"])
async def test_without_logprobs_the_verdict_is_taken_as_text_and_told_once(
    logprobs: Any, judge_over: MakeJudge, caplog: pytest.LogCaptureFixture
) -> None:
    def says(body: Body) -> str:
        first = "Response 1:\ngood" in text_of(body["messages"][-1])
        return f"Since it is good, I choose response {1 if first else 2}."

    chat = Chat(says=says, logprobs=logprobs)
    judge = judge_over(chat, retries=0)
    with caplog.at_level(logging.WARNING):
        request = request_of((0, 1), (1, 0))
        together = await asyncio.gather(*(judge.compare(request) for _ in range(3)))
        for judgement in (*together, await judge.compare(request)):
            assert [v.margin for v in judgement.verdicts] == [1, -1]
            assert judgement.explanations == ("it is good", "it is good")
    told = [r.message for r in caplog.records if "no log-probabilities" in r.message]
    assert len(told) == 1
    asked_once = [body for body in chat.requests if not body.get("stream")]
    assert len(asked_once) <= 3 * 8  # of the first calls alone
    assert all(body.get("stream") for body in chat.requests[-4:])


async def test_explanations_are_written_after_the_verdicts_and_only_when_asked_for(
    judge_over: MakeJudge,
) -> None:
    def says(body: Body) -> str:
        verdict = body["messages"][-2]
        assert verdict["role"] == "assistant"
        return f"It is number {verdict['content']}.\nAnd more."

    chat = Chat(likeliest=likes_good, says=says)
    judge = judge_over(chat)
    plain = await judge.compare(request_of((0, 1), (1, 0)))
    assert plain.explanations == ()
    explained = await judge.compare(request_of((0, 1), (1, 0), explain=True))
    assert explained.verdicts == plain.verdicts
    assert explained.explanations == ("It is number 1.", "It is number 2.")
    assert explained.usage.judge_tokens > plain.usage.judge_tokens
    assert explained.usage.judge_calls == 1


@pytest.mark.parametrize("fault", ["429", "500", "page"])
async def test_a_failure_in_passing_is_tried_again(fault: str, judge_over: MakeJudge) -> None:
    chat = Chat(likeliest=likes_good, faults=[fault])
    judgement = await judge_over(chat).compare(request_of())
    assert judgement.verdicts[0].margin == pytest.approx(3.0)
    assert len(chat.requests) == 3


async def test_a_failing_server_is_an_error_and_no_tie(judge_over: MakeJudge) -> None:
    with pytest.raises(ServerError, match="failed 2 times"):
        await judge_over(Chat(status=500), retries=1).compare(request_of())
