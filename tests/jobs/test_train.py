"""What `jobs.train` and `jobs.judge` refuse, and that they write nothing then."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import judge, train
from stagebeam.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "quickstart.yaml"


def recipe_in(folder: Path, **changes: str) -> Path:
    text = RECIPE.read_text().replace("runs/quickstart", str(folder / "run"))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("main", [train.main, judge.main])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "There are no prepared shards in|is not there yet; train it first"),
        ({"zero_stage: 3": "zero_stage: 4"}, "'train.zero_stage'"),
        ({"num_workers: 2": "num_workers: 3"}, "does not divide"),
        ({"seed: 0": "seed: 0\nspeed: 1"}, "unknown key 'speed'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(
    main: object,
    changes: dict[str, str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_in(tmp_path, **changes)
    with pytest.raises(SystemExit) as ended:
        main(recipe)  # type: ignore[operator]
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert len(said.splitlines()) == 1
    assert any(part in said for part in sentence.split("|"))
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_folder_with_another_run_is_refused_and_fresh_replaces_it(tmp_path: Path) -> None:
    assert train.finished(tmp_path / "run", "one", fresh=False) is None
    with pytest.raises(ValueError, match="other settings; use --fresh"):
        train.finished(tmp_path / "run", "two", fresh=False)
    assert train.finished(tmp_path / "run", "two", fresh=True) is None


def test_folders_of_a_run_are_absolute_because_workers_run_elsewhere() -> None:
    recipe = load_recipe(RECIPE)
    assert train.required_train(recipe).output_dir.is_absolute()
    assert judge.required(recipe).output_dir.is_absolute()
