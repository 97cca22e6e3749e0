"""What a trained judge is worth: its card, measured on pairs with known answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

from rich.console import Console

from jobs.judge import required, sample_answers, trained_generator
from jobs.train import TrainSummary
from stagebeam.data.preferences import first_fault
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.judge_card import JudgePair, judge_card
from stagebeam.evaluation.question import prompt_of
from stagebeam.evaluation.results import JudgeCard, JudgeResult, JudgeTrainingCost
from stagebeam.evaluation.scoring import correct
from stagebeam.inference.load import load_judge
from stagebeam.inference.verdict import PLAIN_KINDS
from stagebeam.recipe import JudgeConfig, Recipe
from stagebeam.records import Example
from stagebeam.stages import Stage, conclusion

QUESTIONS = 128


def judge_result(
    recipe: Recipe, judge: JudgeConfig, trained: TrainSummary, console: Console
) -> JudgeResult:
    """The card of the judge that serves, and of the other ways in which its model can be asked.

    Pairs come from the generator's samples on held-out questions behind those that the evaluation
    asks. Raises ValueError where the samples hold no pair.
    """
    config = required(recipe)
    pairs = _known_pairs(recipe, console)
    others = PLAIN_KINDS if judge.engine == "transformers" else ()
    cards = {kind: _card(judge, kind, pairs) for kind in dict.fromkeys((*others, judge.kind))}
    return JudgeResult(
        **cards[judge.kind].model_dump(),
        kind=judge.kind,
        training=JudgeTrainingCost(
            steps=trained.steps,
            seconds=trained.seconds,
            samples=config.questions * config.samples,
        ),
        kinds=cards,
        pairs_from=(
            f"Samples of the generator on {QUESTIONS} questions behind those of the evaluation."
        ),
    )


def _card(config: JudgeConfig, kind: str, pairs: Sequence[JudgePair]) -> JudgeCard:
    judge = load_judge(config.model_copy(update={"kind": kind}))
    try:
        return asyncio.run(judge_card(judge, pairs))
    finally:
        judge.close()


def _known_pairs(recipe: Recipe, console: Console) -> list[JudgePair]:
    assert recipe.evaluation is not None
    start = recipe.evaluation.rows
    examples = list(islice(iter_examples(recipe.evaluation.shards), start, start + QUESTIONS))
    answers = sample_answers(recipe, required(recipe), trained_generator(recipe), examples, console)
    pairs: list[JudgePair] = []
    for example, texts in zip(examples, answers, strict=True):
        for stage, prefix, better, worse in (*_stages(example, texts), *_answers(example, texts)):
            second = len(pairs) % 2 == 1  # the better one stands first and second in turn
            pairs.append(
                JudgePair(
                    prompt=prompt_of(example),
                    stage=stage,
                    prefix=prefix,
                    candidates=(worse, better) if second else (better, worse),
                    better=1 if second else 0,
                    category=example.category,
                )
            )
    return pairs


_Known = tuple[Stage | None, str, str, str]  # stage, prefix, better, worse


def _stages(example: Example, texts: Sequence[str]) -> list[_Known]:
    """Gold against the first fault of each different wrong sample."""
    faults = {f.rejected: f for text in texts if (f := first_fault(example, text)) is not None}
    return [(f.stage, f.prefix, f.chosen, f.rejected) for f in faults.values()]


def _answers(example: Example, texts: Sequence[str]) -> list[_Known]:
    """A right and a wrong whole sample of the same question, where there are both."""
    right = [text for text in texts if correct(conclusion(text), example)]
    wrong = [text for text in texts if not correct(conclusion(text), example)]
    return [(None, "", right[0], wrong[0])] if right and wrong else []
