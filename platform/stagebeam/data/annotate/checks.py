"""What is wrong with a teacher's reply. Nothing here asks anyone: text in, verdict out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stagebeam.data.annotate.journal import Reply
from stagebeam.stages import Stage, find_tags, parse, render, wrap

Fault = Literal[
    "cut off",  # the reply ran into max_tokens
    "format",  # tags, stages or turn markers are not as asked
    "leak",  # the reply speaks of what it was shown in confidence
    "refusal",  # the teacher declines
    "disagrees",  # the conclusion is not the standard answer
    "unclear check",  # the checker said neither yes nor no
    "request refused",  # the endpoint does not take this row's request
    "endpoint",  # the endpoint failed, each time it was tried
]


class FaultyError(Exception):
    """Why a reply, or in the end a row, is not used."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault: Fault = fault
        self.reason = reason  # one sentence


# In each, a space stands for any white space. "The correct answer" is no leak: so people reason.
_STAGED_LEAKS = (
    r"(?:standard|reference|gold|golden|expected|official|ground[- ]truth|model) answers?\b"
    r"(?! (?:sheet|choice|option|candidate|format)s?\b)",
    r"(?:provided|given|supplied|known) (?:correct |final |short )?answers?\b"
    r"(?! (?:choice|option|candidate|possibilit)\w*)",
    r"answers? (?:that )?(?:(?:was|were|is|are|has been|have been|I was|we were|you) )"
    r"(?:provided|given|gave|supplied)\b",
    r"answer key\b",
    r"confidential\b",
    r"ground[- ]truth\b",
    r"(?:provided|given|supplied) (?:hint|solution)s?\b",
    r"hints? (?:that )?(?:(?:was|were|is|are|I was|you) )?(?:provided|given|gave|says?|states?)\b",
)
_INSTRUCT_LEAKS = (
    r"bounding[- ]box(?:es)?\b",
    r"bbox(?:es)?\b",
    r"(?:provided|given|supplied|above|following) (?:image )?"
    r"(?:captions?|descriptions?|sentences|contexts?|texts?|coordinates|information)\b",
    r"(?:captions?|descriptions?|coordinates|context) (?:(?:that )?(?:was|were|is|are) )?"
    r"(?:provided|given|supplied|mentions?|says?|states?|indicates?|describes?|suggests?)\b",
    r"(?:from|in|to|on|by) the (?:captions?|descriptions?|coordinates|context)\b",
    r"not (?:mentioned|specified|stated|described) in the\b",
)
# Runs of coordinates, which belong to the prompt: [0.1, 0.25, ...
_NUMBERS = re.compile(r"[\[(]\s*[01]?\.\d+\s*,\s*[01]?\.\d+")
_REFUSALS = (
    r"as an? (?:AI|artificial intelligence|language model|large language model)\b",
    r"I(?:'m| am) (?:very |really |so )?sorry\b",
    r"I apologi[sz]e\b",
    r"I (?:can't|cannot|can not|won't|will not|am unable to|am not able to|'m unable to|"
    r"'m not able to) (?:assist|help|provide|comply|fulfil|fulfill|do that|view|see|access|"
    r"process|analy[sz]e|identify|answer|respond|engage|continue)\b",
    r"I'm (?:unable|not able) to\b",
    r"I (?:do not|don't) have (?:the ability|access|the capability)\b",
)


def _any(patterns: Iterable[str]) -> re.Pattern[str]:
    joined = "|".join(p.replace(" ", r"\s+") for p in patterns)
    return re.compile(rf"(?<!\w)(?:{joined})", re.IGNORECASE)


_STAGED_LEAK, _INSTRUCT_LEAK, _REFUSAL = map(_any, (_STAGED_LEAKS, _INSTRUCT_LEAKS, _REFUSALS))


def check_staged(reply: Reply, question: str) -> str:
    """The staged answer in a reply, in the form in which `stages.render` writes it.

    A phrase that the question itself uses is no leak. Raises FaultyError if it cannot be used.
    """
    text = _staged_text(reply)
    answer = parse(text)
    if not answer.valid:
        _check_refusal(text, question)
        _check_end(reply)
        problems = ", ".join(map(str, answer.problems))
        raise FaultyError("format", f"The reply is not a staged answer: {problems}.")
    for body in answer.bodies.values():
        if tags := find_tags(body):
            raise FaultyError("format", f"A stage contains what reads like a tag, {tags[0]}.")
        _check_refusal(body, question)
        _check_leak(_STAGED_LEAK, body, question)
    return render(answer.bodies)


def _staged_text(reply: Reply) -> str:
    """Some servers, such as `stagebeam serve`, give the first three stages as `reasoning` and the
    bare conclusion as `content`; a model that thinks first gives its thoughts as `reasoning`."""
    if not parse(reply.content).bodies and Stage.SUMMARY in parse(reply.reasoning).bodies:
        try:
            return f"{reply.reasoning}\n{wrap(Stage.CONCLUSION, reply.content)}"
        except ValueError:  # no conclusion
            return reply.reasoning
    return reply.content


def read_verdict(reply: Reply) -> bool | None:
    """Whether the checker said yes; None where it said neither yes nor no, or more than that."""
    word = reply.content.strip().strip("*_\"'`.! \n").casefold()
    return {"yes": True, "no": False}.get(word)


_MARKER = re.compile(r"^\s*(Question|Answer):[ \t]*", re.MULTILINE)
_RULE = re.compile(r"^\s*={3,}\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


def check_turns(reply: Reply, most: int | None = None) -> tuple[Turn, ...]:
    """The questions and answers of a reply in LLaVA's form: `Question:` ... `===` `Answer:` ...
    `===`; at most `most` of them.

    Raises FaultyError if it cannot be used.
    """
    _check_instruct(reply)
    blocks = [block.strip() for block in _RULE.split(reply.content)]
    if blocks and not blocks[-1]:
        blocks.pop()
    texts = [_block(block, ("Question", "Answer")[i % 2]) for i, block in enumerate(blocks)]
    if not texts or len(texts) % 2:
        raise FaultyError("format", "The reply does not end with an answer.")
    if most is not None and len(texts) > 2 * most:
        raise FaultyError("format", f"The reply has {len(texts) // 2} questions, not {most}.")
    return tuple(Turn(*texts[i : i + 2]) for i in range(0, len(texts), 2))


def _block(block: str, marker: str) -> str:
    marks = list(_MARKER.finditer(block))
    if [m[1] for m in marks] != [marker] or marks[0].start() != 0:
        raise FaultyError("format", f"A part of the reply is not one '{marker}:'.")
    text = block[marks[0].end() :].strip()
    if not text:
        raise FaultyError("format", f"A '{marker}:' is empty.")
    return text


def check_description(reply: Reply) -> str:
    """A description, without markers; raises FaultyError if it cannot be used."""
    _check_instruct(reply)
    text = reply.content.strip()
    if not text:
        raise FaultyError("format", "The reply is empty.")
    if _MARKER.search(text) or _RULE.search(text):
        raise FaultyError("format", "The description has turn markers.")
    return text


def _check_instruct(reply: Reply) -> None:
    _check_refusal(reply.content, "")
    _check_end(reply)
    _check_leak(_INSTRUCT_LEAK, reply.content, "")
    if _NUMBERS.search(reply.content):
        raise FaultyError("leak", "The reply gives coordinates.")
    if "<image>" in reply.content or find_tags(reply.content):
        raise FaultyError("format", "The reply contains a placeholder or a tag.")


def _check_end(reply: Reply) -> None:
    if reply.finish_reason == "length":
        raise FaultyError("cut off", f"The reply was cut off at {reply.completion_tokens} tokens.")


def _check_refusal(text: str, question: str) -> None:
    if phrase := _found(_REFUSAL, text, question):
        raise FaultyError("refusal", f"The reply says {phrase!r}.")


def _check_leak(pattern: re.Pattern[str], text: str, question: str) -> None:
    if phrase := _found(pattern, text, question):
        raise FaultyError("leak", f"The reply says {phrase!r}.")


def _found(pattern: re.Pattern[str], text: str, question: str) -> str | None:
    """The first phrase of the pattern that the question does not use itself."""
    known = _plain(question)
    phrases = (_plain(match[0]) for match in pattern.finditer(text.replace("\u2019", "'")))
    return next((phrase for phrase in phrases if phrase not in known), None)


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split())
