"""Pairs of a model's own samples of which one is right: what a judge chooses among in a search."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.data.preferences import Preference
from stagebeam.evaluation.scoring import correct
from stagebeam.records import Example
from stagebeam.stages import STAGES, Stage, StagedAnswer, parse, wrap


def stage_pairs(example: Example, answers: Sequence[str]) -> list[Preference]:
    """Samples of one stage, after the same right prefix, right against wrong.

    A summary and a caption are right where they are the gold ones, a reasoning where it led to the
    right conclusion: of several ways to a right answer, each is one. A sample is in two pairs of a
    stage at most.
    """
    gold = parse(example.messages[-1].text).bodies
    alive, pairs, prefix = _whole(answers), list[Preference](), ""
    for stage in STAGES[:-1]:
        right = [a for a in alive if _holds(stage, a, gold[stage], example)]
        wrong = [a for a in alive if a not in right]
        pairs += [
            Preference.about(example, stage, prefix, _text(stage, a), _text(stage, b))
            for a, b in zip(right, wrong, strict=False)
            if a.bodies[stage] != b.bodies[stage]
        ]
        if not right:
            break
        prefix += _text(stage, right[0])
        alive = [a for a in right if a.bodies[stage] == right[0].bodies[stage]]
    return pairs


def answer_pairs(example: Example, answers: Sequence[str]) -> list[Preference]:
    """Whole answers, right against wrong; a row needs a stage, and gets the one they end with."""
    whole = _whole(answers)
    right = [a for a in whole if correct(a.conclusion, example)]
    wrong = [a for a in whole if a not in right]
    return [
        Preference.about(example, Stage.CONCLUSION, "", _all(a), _all(b))
        for a, b in zip(right, wrong, strict=False)
    ]


def _whole(answers: Sequence[str]) -> list[StagedAnswer]:
    """Those with all their stages, each once."""
    return [found for text in dict.fromkeys(answers) if (found := parse(text)).valid]


def _holds(stage: Stage, answer: StagedAnswer, gold: str, example: Example) -> bool:
    if stage is Stage.REASONING:
        return correct(answer.conclusion, example)
    return answer.bodies[stage] == gold


def _text(stage: Stage, answer: StagedAnswer) -> str:
    """The stage as `render` writes it, with the space before it."""
    space = "" if stage is STAGES[0] else " "
    return space + wrap(stage, answer.bodies[stage])


def _all(answer: StagedAnswer) -> str:
    return "".join(_text(stage, answer) for stage in STAGES)
