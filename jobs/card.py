"""What a judge is worth: its card, measured on pairs with known answers.

A trained judge is asked in this process (`judge_result`), the judge of an endpoint by way of
searches that it has to decide (`served_card`), or its card is already there (`read_card`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from jobs.asking import Source, ask_all, section_of
from jobs.judge import required, sample_answers, trained_generator
from jobs.train import TrainSummary
from stagebeam.data.preferences import first_fault
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.judge_card import JudgePair, judge_card
from stagebeam.evaluation.question import prompt_of
from stagebeam.evaluation.results import (
    Accuracies,
    JudgeCard,
    JudgeResult,
    JudgeTrainingCost,
    Share,
)
from stagebeam.evaluation.scoring import correct
from stagebeam.evaluation.traced_pairs import card_of_traces
from stagebeam.inference.load import load_judge
from stagebeam.inference.verdict import PLAIN_KINDS
from stagebeam.recipe import JudgeConfig, Recipe, describe
from stagebeam.records import Example
from stagebeam.stages import Stage, conclusion

QUESTIONS = 128
CARD_FOLDER = "card"  # below the evaluation's
_METHODS = ("best_of_n", "stage_beam")  # whole answers are compared by the one, stages by the other
_MOST = 4  # candidates: all of them meet in one round


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


async def served_card(
    recipe: Recipe, source: Source, fresh: bool, console: Console
) -> JudgeResult | None:
    """The card of the judge that is served, from searches on questions behind the evaluation's.

    They lie in `card/`, and go on where they stopped. None, with a line that says why, where there
    is no such question, no method asks the judge, or nothing comes of it whose answer is known.
    """
    config = section_of(recipe)
    n = min(_MOST, max(config.candidates))
    if n < 2 or set(config.methods) <= {"majority"} or not config.card_questions:
        return None
    behind = islice(iter_examples(config.shards), config.rows, config.rows + config.card_questions)
    examples = [example for example in behind if example.answer is not None]
    if not examples:
        console.print(f"No card of the judge: {config.shards} holds no question behind those asked")
        return None
    everybody_meets = {"tournament": "round_robin", "early_stop_margin": None, "budget": "fixed"}
    measured = await ask_all(
        recipe.model_copy(update={"search": recipe.search.model_copy(update=everybody_meets)}),
        source,
        examples,
        config.output_dir / CARD_FOLDER,
        fresh,
        console,
        plan=[(method, n) for method in _METHODS],
    )
    traces = measured.store.traces()
    answered = [
        (example, traces[row.trace_id])
        for rows in measured.rows.values()
        for example, row in zip(examples, rows, strict=True)
        if row.trace_id is not None
    ]
    card = card_of_traces(answered, recipe.search.tie_margin)
    if card is None:
        console.print("No card of the judge: no pair of candidates with a known answer came up")
        return None
    return JudgeResult(
        **card.model_dump(),
        kind=recipe.serve.judge.kind if recipe.serve is not None else source.judge,
        pairs_from=(
            f"Pairs that it decided in searches with N = {n} on {len(examples)} questions behind "
            "those of the evaluation."
        ),
    )


def read_card(path: Path, judge: str) -> JudgeResult:
    """The card in a report (`report.json`) or in a file of its own. `judge` is the fingerprint of
    the one that is asked. Raises ValueError where there is no card, or it is another judge's."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        card = told.get("judge", told)
        of = told.get("fingerprints", {}).get("judge", judge)
        found = None if card is None else JudgeResult.model_validate_json(json.dumps(card))
    except FileNotFoundError:
        raise ValueError(f"There is no card of a judge at {path}.") from None
    except ValidationError as error:
        raise ValueError(f"{path} holds no card of a judge: {describe(error)}.") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no card of a judge: {error}.") from None
    if found is None:
        raise ValueError(f"{path} holds no card of a judge.")
    if of != judge:
        raise ValueError(f"{path} holds the card of the judge {of}, and {judge} is asked.")
    return found


def beside_alone(judge: JudgeResult, accuracies: Accuracies) -> JudgeResult:
    """The card with what the judge's own model reaches alone."""
    alone = accuracies.judge_alone
    if alone is None:
        return judge
    share = Share(**{name: getattr(alone, name) for name in Share.model_fields})
    return judge.model_copy(update={"alone": share})


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
