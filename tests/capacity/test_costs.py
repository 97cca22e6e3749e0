"""A file of costs is read whole or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_costs import costs

from stagebeam.capacity.costs import Costs, load_costs

CHECKED_IN = sorted((Path(__file__).parents[2] / "jobs" / "costs").glob("*.json"))


def written(path: Path, **changes: Any) -> Path:
    made = costs().model_dump()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            made[section][name] = value
        else:
            made[section] = value
    path.write_text(json.dumps(made))
    return path


@pytest.mark.parametrize("path", CHECKED_IN, ids=lambda path: path.stem)
def test_the_checked_in_files_can_be_used_and_say_where_they_come_from(path: Path) -> None:
    found = load_costs(path)
    assert ("assumed" in path.stem) == (found.origin == "assumed")
    assert len(found.how) > 40


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    assert load_costs(written(tmp_path / "costs.json")) == costs()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator__pass_s": -1}, "generator.pass_s: "),
        ({"generator__row_s": "much"}, "generator.row_s: "),
        ({"judge__rounds": 1}, "judge.rounds: "),
        ({"question__stage_tokens": {}}, "question.stage_tokens: "),
        ({"question__stage_tokens": {"SUMMARY": 0}}, "question.stage_tokens.SUMMARY: "),
        ({"question__spread": 2}, "question.spread: "),
        ({"origin": "guessed"}, "origin: "),
        ({"training__mfu": 0}, "training.mfu: "),
        ({"hops": None}, "hops: "),
    ],
)
def test_a_wrong_number_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="is not a costs file") as error:
        load_costs(written(tmp_path / "costs.json", **changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_json_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no costs file at"):
        load_costs(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="cannot be read"):
        load_costs(tmp_path)
    (tmp_path / "half.json").write_text('{"name": ')
    with pytest.raises(ValueError, match="is not JSON"):
        load_costs(tmp_path / "half.json")


def test_infinity_is_no_cost(tmp_path: Path) -> None:
    path = written(tmp_path / "costs.json")
    path.write_text(path.read_text().replace('"pass_s": 0.04', '"pass_s": Infinity'))
    with pytest.raises(ValueError, match="finite"):
        load_costs(path)


def test_lengths_stay_above_nothing() -> None:
    question: Costs = costs(spread=1.0)
    assert question.question.lengths(3) == (1, 6)
    assert costs(spread=0.0).question.lengths(3) == (3, 3)
