"""How a judge is asked which of two candidates is better, to answer with one token."""

from __future__ import annotations

from stagebeam.inference.types import JudgeRequest, Prompt
from stagebeam.records import Message
from stagebeam.stages import Stage

OPTIONS = ("1", "2")
LABEL = "Candidate"  # stands before each of the two

# What each stage is judged on (arXiv 2411.10440, section 3.3).
_CRITERIA = {
    Stage.SUMMARY: "states the better approach to the question",
    Stage.CAPTION: "describes the image more thoroughly and accurately",
    Stage.REASONING: "reasons more soundly from what is known",
    Stage.CONCLUSION: "agrees better with the reasoning",
    None: "answers the question better",
}


def verdict_messages(request: JudgeRequest, first: str, second: str) -> tuple[Message, ...]:
    """The conversation that ends in the question which of two candidates is better.

    What all pairs of a round have in common stands first: it is read once for all of them.
    """
    *earlier, question = request.prompt.messages
    agreed = f" Agreed so far: {request.prefix}" if request.prefix else ""
    text = (
        f"{question.text}{agreed} Which candidate {_CRITERIA[request.stage]}, 1 or 2? "
        f"{LABEL}{behind_first(first)}{behind_second(second)}"
    )
    return (*earlier, Message("user", text))


def behind_first(candidate: str) -> str:
    """What stands behind the first label, the second one included."""
    return f" {OPTIONS[0]}: {candidate} {LABEL}"


def behind_second(candidate: str) -> str:
    """What stands behind the second label."""
    return f" {OPTIONS[1]}: {candidate}"


def wording() -> tuple[str, ...]:
    """Every word that `verdict_messages` adds, for a vocabulary that must have them."""
    samples = [
        JudgeRequest(Prompt((Message("user", ""),)), stage, "-", (), ()) for stage in _CRITERIA
    ]
    return tuple(verdict_messages(sample, "", "")[-1].text for sample in samples) + OPTIONS
