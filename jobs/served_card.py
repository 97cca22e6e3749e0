"""What the judge of an endpoint is worth: its card, from searches that it has to decide.

The questions lie behind those that the evaluation asks. A card may also be there already.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from jobs.asking import Source, ask_all, section_of
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.results import Accuracies, JudgeResult, Share
from stagebeam.evaluation.traced_pairs import card_of_traces
from stagebeam.recipe import Recipe, describe
from stagebeam.storage import on_disk

CARD_FOLDER = "card"  # below the evaluation's
_METHODS = ("best_of_n", "stage_beam")  # whole answers are compared by the one, stages by the other
_MOST = 4  # candidates: all of them meet in one round


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
        on_disk(config.output_dir) / CARD_FOLDER,
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
