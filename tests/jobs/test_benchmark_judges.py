"""The benchmark of judges: what it counts, and that the same candidates are drawn once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from jobs.benchmarks import judge_models, judges
from jobs.benchmarks.ablation import last_word
from jobs.benchmarks.judges import KINDS, Remembering, voted
from stagebeam.evaluation.answers import AnswerRow
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Sampling, Usage
from stagebeam.records import Example, Message


def row(conclusion: str | None, correct: bool) -> AnswerRow:
    return AnswerRow(
        method="greedy", n=1, id="1", question="q", trace_id="t", correct=correct,
        conclusion=conclusion, gold="3", category=None, seconds=0.1, usage=None,
    )  # fmt: skip


def test_models_vote_by_what_they_say_and_the_first_breaks_a_draw() -> None:
    three = [row("3", True), row("4", False), row(" 3. ", True)]
    draw = [row("4", False), row("3", True), row(None, False)]
    members = [[a, b] for a, b in zip(three, draw, strict=True)]
    assert voted(members) == [True, False]


def test_peers_are_the_models_of_all_seeds() -> None:
    assert KINDS["peers"].members(1, (0, 1, 2)) == (0, 1, 2)
    assert KINDS["reward"].members(1, (0, 1, 2)) == (1,)


def test_the_last_word_is_the_conclusion_of_a_reply_without_tags() -> None:
    example = Example(
        "1", (), (Message("user", "Q"), Message("assistant", "3")), "scenes", "test", "3"
    )
    assert last_word(example, "I will count.\nThat is 3.\n3").score == 1
    assert last_word(example, "That is 3 and then 4").score == 0
    assert last_word(example, " ").said is None


class Counting:
    """A generator that counts its calls."""

    calls = 0

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        self.calls += 1
        yield Candidate(0, f"{request.seeds} {request.prefix}", 1, -1.0, "stop")
        yield Usage(decode_tokens=1)


@pytest.mark.parametrize(
    ("prefix", "seeds", "image", "calls"),
    [("", (1, 2), b"a", 1), ("x", (1, 2), b"a", 2), ("", (1, 3), b"a", 2), ("", (1, 2), b"b", 2)],
)
async def test_the_same_call_is_made_once_and_another_one_is_made(
    prefix: str, seeds: tuple[int, ...], image: bytes, calls: int
) -> None:
    generator = Counting()
    remembering = Remembering(generator)

    async def ask(prefix: str, seeds: tuple[int, ...], image: bytes) -> list[Candidate | Usage]:
        prompt = Prompt((Message("user", "Q"),), (image,))
        request = GenerateRequest(prompt, prefix, ("</CONCLUSION>",), seeds, Sampling())
        return [item async for item in remembering.propose(request)]

    first = await ask("", (1, 2), b"a")
    again = await ask(prefix, seeds, image)
    assert generator.calls == calls
    assert (again == first) is (calls == 1 or image == b"b")


@pytest.mark.slow
async def test_the_benchmark_makes_its_models_and_measures_every_kind_of_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("GENERATOR_STEPS", 10), ("JUDGE_STEPS", 5), ("SAMPLED_QUESTIONS", 60)):
        monkeypatch.setattr(judge_models, name, few)
    monkeypatch.setattr(judges, "CARD_QUESTIONS", 20)
    run, names = judges.Run(tmp_path, (0, 1), 4), ["itself", "reward", "peers"]
    await asyncio.to_thread(run.make_models, names, [0])
    found = await judges.measure(names, [0], run, Console(quiet=True))
    assert list(found) == names
    assert all(one.questions == 4 and one.card[0].pairs for one in found.values())
    assert "judge's models voting" in found["peers"].against
