"""Pairs with known answers out of searches: what the judge said there, as it was served.

Nothing is asked again, so any endpoint's judge can be measured. Searches are asked on questions of
their own and in round robins: a card on the very answers that it is to vouch for would be circular.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from stagebeam.evaluation.judge_card import TIE_MARGIN, WHOLE_ANSWER, Judged, JudgePair, card_of
from stagebeam.evaluation.question import prompt_of
from stagebeam.evaluation.results import JudgeCard
from stagebeam.evaluation.scoring import correct
from stagebeam.inference.types import Verdict
from stagebeam.records import Example
from stagebeam.search.trace import StageTrace, Trace
from stagebeam.stages import Stage, conclusion, parse, stage_body

SCENES = "scenes"  # sources that begin so have gold texts that are the only right ones


def card_of_traces(
    answered: Sequence[tuple[Example, Trace]], tie_margin: float = TIE_MARGIN
) -> JudgeCard | None:
    """The card of the judge that played these searches; None where no pair has a known answer.

    A pair of whole answers is known where one conclusion is right and the other wrong. A pair of
    stages is known in drawn scenes, after stages that are the gold ones, where one is gold and the
    other is not. Of a question and a stage only the first such pair counts: more would be the same
    texts again, and intervals would be too narrow.
    """
    judged = [one for example, trace in answered for one in _judged(example, trace, tie_margin)]
    if not judged:
        return None
    matches = sum(len(stage.matches) for _, trace in answered for stage in trace.stages)
    tokens = sum(trace.usage.judge_tokens for _, trace in answered)
    seconds = sum(trace.usage.seconds for _, trace in answered)
    return card_of(judged, tokens / matches, seconds)


def _judged(example: Example, trace: Trace, tie_margin: float) -> Iterator[Judged]:
    prefix = ""
    drawn = example.source.startswith(SCENES)
    gold = parse(example.messages[-1].text).bodies if drawn else {}
    for stage in trace.stages:
        if stage.stage == WHOLE_ANSWER:
            right = [correct(conclusion(c.text), example) for c in stage.candidates]
        elif stage.stage in gold:
            name = Stage(stage.stage)
            right = [stage_body(name, c.text) == gold[name] for c in stage.candidates]
        else:
            return
        found = _first(example, stage, right, prefix, tie_margin)
        if found is not None:
            yield found
        if not right[stage.winner]:
            return  # what is better after a fault is not known
        prefix += stage.candidates[stage.winner].text


def _first(
    example: Example, stage: StageTrace, right: Sequence[bool], prefix: str, tie_margin: float
) -> Judged | None:
    """The first match of a right text and a wrong one that was put to the judge."""
    for match in stage.matches:
        if match.decided_by == "rule" or right[match.a] == right[match.b]:
            continue
        better: Literal[0, 1] = 0 if right[match.a] else 1
        texts = (stage.candidates[match.a].text, stage.candidates[match.b].text)
        named = None if stage.stage == WHOLE_ANSWER else Stage(stage.stage)
        pair = JudgePair(prompt_of(example), named, prefix, texts, better, example.category)
        return Judged(pair, Verdict(match.forward, match.backward), tie_margin)
    return None
