"""The judge of an endpoint is measured on questions behind those that the evaluation asks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_server import WorldSearcher, http_world
from scripted_world import ScriptedGenerator, World, example

from jobs.asking import endpoint_of
from jobs.served_card import beside_alone, read_card, served_card
from stagebeam.data.writing import write_shards
from stagebeam.evaluation.answers import AnswerRow, summarise
from stagebeam.evaluation.results import JudgeResult
from stagebeam.recipe import DataConfig, Recipe
from stagebeam.search.trace import UsageTrace, read_traces

ASKED, BEHIND = 5, 30
SEARCH = {"temperature": 1.0, "tournament": "bracket"}
EXAMPLES = tuple(example(number) for number in range(ASKED + BEHIND))


@pytest.fixture
def searcher() -> WorldSearcher:
    world = World(EXAMPLES)
    return WorldSearcher(world, ScriptedGenerator(world))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    shards = tmp_path / "held-out"
    write_shards(EXAMPLES, shards, DataConfig(shards=shards))

    def recipe(**evaluation: object) -> Recipe:
        section = {"output_dir": tmp_path / "out", "shards": shards, "rows": ASKED}
        return Recipe.model_validate(
            {
                "name": "tiny",
                "model": {"path": "none"},
                "data": {"shards": "none"},
                "search": {**SEARCH, "early_stop_margin": 0.5, "budget": "adaptive"},
                "evaluation": {**section, **evaluation},
            }
        )

    return recipe


def card_of(recipe: Recipe, url: str) -> JudgeResult | None:
    async def ask() -> JudgeResult | None:
        return await served_card(recipe, await endpoint_of(url), False, Console(quiet=True))

    return asyncio.run(ask())


def test_it_is_asked_on_other_questions_in_round_robins_and_goes_on_where_it_stopped(
    make: Callable[..., Recipe], searcher: WorldSearcher, tmp_path: Path
) -> None:
    with http_world(searcher) as url:
        card = card_of(make(card_questions=20), url)
        assert len(searcher.asked) == 2 * 20
        again = card_of(make(card_questions=20), url)
        assert again == card and len(searcher.asked) == 2 * 20
        more = card_of(make(card_questions=999), url)
        assert len(searcher.asked) == 2 * BEHIND
    assert card is not None and more is not None
    assert 10 < card.pairs < more.pairs
    assert card.by_stage["ANSWER"].pairs > 5
    assert card.kind == "scripted-judge" and "20 questions behind" in (card.pairs_from or "")
    assert card.judge_tokens > 0 and card.calibration
    traces = list(read_traces(tmp_path / "out" / "card" / "traces.jsonl"))
    assert {t.tournament for t in traces} == {"round_robin"}
    assert {t.early_stop_margin for t in traces} == {None}
    asked = {t.messages[-1].text + str(t.image_digests) for t in traces}
    assert len(asked) <= BEHIND
    assert (tmp_path / "out" / "answers.jsonl").exists() is False


@pytest.mark.parametrize(
    "evaluation",
    [{"card_questions": 0}, {"methods": ["majority"]}, {"candidates": [1]}, {"rows": 99}],
)
def test_where_it_cannot_be_measured_nothing_is_asked(
    evaluation: dict[str, object], make: Callable[..., Recipe], searcher: WorldSearcher
) -> None:
    with http_world(searcher) as url:
        assert card_of(make(**evaluation), url) is None
    assert searcher.asked == []


def test_questions_that_nobody_gets_right_make_no_card(
    make: Callable[..., Recipe], searcher: WorldSearcher
) -> None:
    searcher.generator = ScriptedGenerator(searcher.world, skill=1.0)
    with http_world(searcher) as url:
        assert card_of(make(card_questions=3), url) is None


def card() -> JudgeResult:
    return JudgeResult(
        accuracy=0.8,
        interval=(0.7, 0.9),
        pairs=100,
        correct=80,
        ties=0,
        swap_consistency=0.9,
        mean_margin=1.0,
        first_position_share=0.5,
        by_stage={},
        kind="verdict",
    )


def test_a_card_is_read_from_a_report_of_the_same_judge_or_from_its_own_file(
    tmp_path: Path,
) -> None:
    report, alone = tmp_path / "report.json", tmp_path / "card.json"
    section = json.loads(card().model_dump_json())
    report.write_text(json.dumps({"judge": section, "fingerprints": {"judge": "j-1"}}))
    alone.write_text(json.dumps(section))
    assert read_card(report, "j-1") == read_card(alone, "j-1") == card()
    with pytest.raises(ValueError, match="holds the card of the judge j-1, and j-2 is asked"):
        read_card(report, "j-2")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"judge": null}', '{"judge": {"kind": 3}}'])
def test_what_is_no_card_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    with pytest.raises(ValueError, match="There is no card of a judge at"):
        read_card(path, "j")
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no card of a judge"):
        read_card(path, "j")


def test_the_card_says_what_the_judges_model_reaches_alone() -> None:
    row = AnswerRow.failure("greedy", 1, EXAMPLES[0], "", 1.0)
    greedy = row.model_copy(update={"usage": UsageTrace(), "error": None, "correct": True})
    own = greedy.model_copy(update={"method": "judge_alone"})
    both = summarise({"greedy": [greedy], "judge_alone": [own]})
    told = beside_alone(card(), both).alone
    assert told is not None and (told.correct, told.questions) == (1, 1)
    assert beside_alone(card(), summarise({"greedy": [greedy]})).alone is None
