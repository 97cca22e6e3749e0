"""The paper's judge (arXiv 2411.10440, section 3.3): the model writes which response it prefers.

A named compatibility mode, over any generator. The verdict is one sentence, "Since [reason], I
choose response 1.", or 2; a pair's margin is +1 or -1 and stands for no log-odds. The paper asks
about a pair in one order. Asked in `both`, verdicts that contradict each other cancel to a tie.

Before reasoning is compared, each text is checked for correctness alone and without the image;
where one of a pair passes and the other fails, that decides.

A reply that cannot be read is counted in `Usage.judge_failures`, and its pair is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stagebeam.inference.judge_calls import OwnedGenerator, write
from stagebeam.inference.together import at_once, gathered
from stagebeam.inference.types import Judgement, JudgeRequest, Prompt, Usage, Verdict
from stagebeam.records import Message
from stagebeam.stages import Stage, parse

Orders = Literal["one", "both"]

_STOPS = ("I choose response 1.", "I choose response 2.")
_CHECK_TOKENS = 8  # for one word
_VERDICT = re.compile(r"Since (\S*\w.*?),? I choose response ([12])\.?", re.I)
_CHOICE = "i choose response"

_CRITERIA = {
    Stage.SUMMARY: "Both are plans for the question. Prefer the one whose approach is more likely "
    "to lead to the right answer: it takes up what is asked and names the steps that it takes.",
    Stage.CAPTION: "Both describe the image for someone who must answer the question without "
    "seeing it. Prefer the one that is more thorough about what matters to the question and more "
    "accurate; something that is not in the image weighs more than something left out.",
    Stage.REASONING: "Both reason towards an answer. Prefer the one that is sounder: its steps "
    "follow from one another and from the image, without slips in counting or arithmetic.",
    Stage.CONCLUSION: "Both are final answers. Prefer the one that agrees with the reasoning and "
    "answers exactly what is asked.",
    None: "Both are whole answers. Prefer the one whose final answer is more likely to be right.",
}
# What each stage is shown of those before it.
_HINTS: dict[Stage | None, tuple[Stage, ...]] = {
    Stage.REASONING: (Stage.CAPTION,),
    Stage.CONCLUSION: (Stage.CAPTION, Stage.REASONING),
}
_FORM = (
    "Reply with one sentence and nothing else, in one of these two forms:\n"
    "Since [reason], I choose response 1.\n"
    "Since [reason], I choose response 2."
)


@dataclass(frozen=True, slots=True)
class TextVerdict:
    """What a reply says: the reason, and which of the two shown responses it chooses."""

    reason: str
    choice: Literal[1, 2]


def read_verdict(reply: str) -> TextVerdict | None:
    """The verdict of a reply that is one sentence of the form asked for, else None.

    Letters may be of either case, white space is free, a missing comma or full stop is forgiven;
    words around the sentence or a second choice are not.
    """
    line = " ".join(reply.split())
    found = _VERDICT.fullmatch(line)
    if found is None or line.casefold().count(_CHOICE) != 1:
        return None
    return TextVerdict(found[1], 1 if found[2] == "1" else 2)


def read_check(reply: str) -> bool | None:
    """Whether a reply of one word says that a text is correct; None where it says neither."""
    word = reply.strip().strip("*_\"'`.! ").casefold()
    return {"correct": True, "incorrect": False}.get(word)


def text_messages(request: JudgeRequest, first: str, second: str) -> tuple[Message, ...]:
    """The conversation that ends with the request for a verdict on two candidates."""
    return _with_last(
        request,
        "Compare two responses to the question below.",
        [f"Response 1:\n{first}", f"Response 2:\n{second}", _CRITERIA[request.stage], _FORM],
    )


def check_messages(request: JudgeRequest, candidate: str) -> tuple[Message, ...]:
    """The same for the question whether one candidate's reasoning is correct."""
    return _with_last(
        request,
        "Check a piece of reasoning about the question below. You are not shown the image; take "
        "the description of it as true.",
        [
            f"Reasoning:\n{candidate}",
            "Is every step of the reasoning correct? Reply with one word, correct or incorrect.",
        ],
    )


def _with_last(request: JudgeRequest, opening: str, rest: Sequence[str]) -> tuple[Message, ...]:
    """The prompt's turns, the last one rewritten: opening, question, hints, the rest."""
    *earlier, question = request.prompt.messages
    known = parse(request.prefix).bodies
    hints = [
        f"{stage.value.capitalize()} so far:\n{known[stage]}"
        for stage in _HINTS.get(request.stage, ())
        if known.get(stage)
    ]
    parts = [opening, f"Question:\n{question.text}", *hints, *rest]
    return (*earlier, Message("user", "\n\n".join(parts)))


class TextJudge:
    """Implements the Judge protocol over a generator, which decodes greedily here."""

    def __init__(self, generator: OwnedGenerator, *, orders: Orders, max_new_tokens: int) -> None:
        """A verdict has at most `max_new_tokens`."""
        self.fingerprint = f"text-{orders}-{generator.fingerprint}"
        self._generator, self._orders, self._tokens = generator, orders, max_new_tokens

    async def compare(self, request: JudgeRequest) -> Judgement:
        """A verdict for each pair, and as its explanation the reason that was written for it."""
        checks: list[bool | None] = [None] * len(request.candidates)
        usage = Usage(judge_calls=1)
        if request.stage is Stage.REASONING:
            checks, cost = await self._check(request)
            usage += cost
        settled = await gathered(self._settle(request, p, checks) for p in request.pairs)
        return Judgement(
            verdicts=tuple(one.verdict for one in settled),
            usage=usage + at_once(one.usage for one in settled),
            explanations=tuple(one.reason for one in settled),
        )

    async def check(self) -> None:
        """As the generator's."""
        await self._generator.check()

    def close(self) -> None:
        """Stop the generator."""
        self._generator.close()

    async def _check(self, request: JudgeRequest) -> tuple[list[bool | None], Usage]:
        """Whether each candidate alone is correct, by its text; None for no readable word."""
        replies = await gathered(
            write(
                self._generator,
                Prompt(check_messages(request, text)),
                stops=("\n",),
                max_new_tokens=_CHECK_TOKENS,
            )
            for text in request.candidates
        )
        checks = [read_check(text) for text, _ in replies]
        failures = Usage(judge_failures=checks.count(None))
        return checks, at_once(cost for _, cost in replies) + failures

    async def _settle(
        self, request: JudgeRequest, pair: tuple[int, int], checks: Sequence[bool | None]
    ) -> _Settled:
        a, b = pair
        if {checks[a], checks[b]} == {True, False}:
            vote, number = (1.0, 1) if checks[a] else (-1.0, 2)
            reason = f"only response {number} passes the check of its reasoning"
            return _Settled(Verdict(vote, vote), reason, Usage())
        asked = [(a, b)] if self._orders == "one" else [(a, b), (b, a)]
        replies = await gathered(self._ask(request, *order) for order in asked)
        cost = at_once(cost for _, cost in replies)
        read = [verdict for verdict, _ in replies if verdict is not None]
        if failures := len(asked) - len(read):
            return _Settled(Verdict(0.0, 0.0), "", cost + Usage(judge_failures=failures))
        forward = _vote(read[0])
        backward = -_vote(read[1]) if len(read) == 2 else forward
        reason = read[0].reason if forward == backward else ""
        return _Settled(Verdict(forward, backward), reason, cost)

    async def _ask(
        self, request: JudgeRequest, first: int, second: int
    ) -> tuple[TextVerdict | None, Usage]:
        candidates = request.candidates
        messages = text_messages(request, candidates[first], candidates[second])
        prompt = replace(request.prompt, messages=messages)
        text, cost = await write(self._generator, prompt, stops=_STOPS, max_new_tokens=self._tokens)
        return read_verdict(text), cost


def _vote(verdict: TextVerdict) -> float:
    return 1.0 if verdict.choice == 1 else -1.0


@dataclass(frozen=True, slots=True)
class _Settled:
    """One pair: its verdict, the reason for it ("" for a tie) and the cost."""

    verdict: Verdict
    reason: str
    usage: Usage
