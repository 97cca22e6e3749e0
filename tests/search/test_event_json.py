"""Events go through JSON and come out equal."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.search import events
from stagebeam.search.event_json import event_from_json, event_to_json
from stagebeam.search.events import Answered, Event, LimitReached, Restarted, StageOpened
from stagebeam.search.fold import Fold

ALL = ("greedy", "majority", "best_of_n", "sentence_beam", "stage_beam", "retrace")
IDS = {"generator_id": "g1", "judge_id": "j1"}


async def told(kit: SimpleNamespace, method: str, folder: Path, **changed: Any) -> list[Event]:
    path = kit.calibration(folder, CAPTION=1e30) if method == "retrace" else None
    judge = kit.ScriptedJudge(kit.by_number, pointwise=True)
    wanted = kit.settings(method=method, calibration=path, explain=True, **changed)
    return [e async for e in events(kit.ask(), kit.SeededGenerator(), judge, wanted, **IDS)]


@pytest.mark.parametrize("method", ALL)
async def test_every_event_of_every_method_survives_its_way_through_json(
    kit: SimpleNamespace, tmp_path: Path, method: str
) -> None:
    happened = [*await told(kit, method, tmp_path), LimitReached("tokens"), Restarted()]
    for event in happened:
        line = json.dumps(event_to_json(event), allow_nan=False)
        assert event_from_json(json.loads(line)) == event


async def test_an_event_names_its_type_and_the_traces_version(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    first, *_, last = await told(kit, "greedy", tmp_path)
    assert event_to_json(first) == {
        "type": "stage_opened",
        "schema_version": 2,
        "visit": 0,
        "stage": "ANSWER",
        "planned": 1,
    }
    assert isinstance(last, Answered)
    assert event_to_json(last)["trace"] == last.trace.model_dump(mode="json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "An event is a JSON object."),
        ({"type": "restarted"}, "schema_version None"),
        ({"type": "restarted", "schema_version": 1}, "schema_version 1; this release reads 2"),
        ({"type": "dict", "schema_version": 2}, "There is no event of type 'dict'."),
        ({"type": {}, "schema_version": 2}, "There is no event of type {}."),
        ({"type": "stage_opened", "schema_version": 2, "visit": 0}, "stage_opened is wrong: "),
        (
            {"type": "limit_reached", "schema_version": 2, "limit": "patience"},
            "The event limit_reached is wrong: limit: ",
        ),
    ],
)
def test_what_is_no_event_is_refused_in_one_sentence(data: object, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        event_from_json(data)
    assert message in str(refused.value) and str(refused.value).endswith(".")


async def test_a_search_that_starts_over_leaves_nothing_of_what_it_said_before(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    happened = await told(kit, "stage_beam", tmp_path, candidates=2)
    fold = Fold()
    cut = next(i for i, e in enumerate(happened) if isinstance(e, StageOpened) and e.visit == 2)
    for event in [*happened[: cut + 2], Restarted(), *happened]:
        fold.add(event)
    last = happened[-1]
    assert isinstance(last, Answered)
    assert tuple(fold.stages) == last.trace.stages and not fold.open
