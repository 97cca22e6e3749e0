"""From traces to pairs, opened with the reader that training uses."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from scripted_world import SETTINGS, ScriptedGenerator, ScriptedJudge, World, example

from jobs.preferences import main, write_pairs
from stagebeam.data.manifest import read_manifest
from stagebeam.data.preferences import read_preferences
from stagebeam.data.writing import write_shards
from stagebeam.evaluation.question import prompt_of
from stagebeam.models.load import Loaded
from stagebeam.recipe import DataConfig, Recipe, load_recipe
from stagebeam.records import Image
from stagebeam.search import Trace, answer
from stagebeam.search.preferences import pairs_of
from stagebeam.search.trace import write_traces
from stagebeam.training.objectives import CHOSEN, REJECTED
from stagebeam.training.preference import PreferenceEncoder

QUESTIONS = tuple(example(number) for number in range(6))


def ask_all(world: World) -> list[Trace]:
    async def ask() -> list[Trace]:
        return [
            await answer(
                prompt_of(question),
                ScriptedGenerator(world),
                ScriptedJudge(world),
                SETTINGS,
                generator_id="g",
                judge_id="j",
            )
            for question in world.examples
        ]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    write_traces(path, ask_all(World(QUESTIONS)))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(QUESTIONS, folder, DataConfig(shards=folder))
    return folder


def test_every_pair_of_the_traces_is_a_row_with_its_images(
    traces: Path, shards: Path, tmp_path: Path
) -> None:
    manifest = write_pairs([traces], [shards], tmp_path / "pairs")
    expected = [pair for trace in ask_all(World(QUESTIONS)) for pair in pairs_of(trace)]
    read = read_preferences(tmp_path / "pairs")
    assert len(read) == len(expected) == manifest.rows > 10
    images = {question.messages[0].text: set() for question in QUESTIONS}
    for question in QUESTIONS:
        images[question.messages[0].text].add(question.images[0].bytes)
    for row, pair in zip(read, expected, strict=True):
        assert (row.messages, row.stage, row.prefix) == (pair.messages, pair.stage, pair.prefix)
        assert (row.chosen, row.rejected, row.margin) == (pair.chosen, pair.rejected, pair.margin)
        assert row.trace == pair.trace and len({r.id for r in read}) == len(read)
        assert row.images[0].bytes in images[row.messages[0].text]


def test_training_makes_batches_of_them(
    traces: Path, shards: Path, tmp_path: Path, loaded: Loaded
) -> None:
    write_pairs([traces], [shards], tmp_path / "pairs")
    batch, refused = PreferenceEncoder(loaded.encoder, tmp_path / "pairs", 1.0)(QUESTIONS[:2])
    assert not refused
    assert (np.count_nonzero(batch["role"] == CHOSEN), len(batch["input_ids"])) == (2, 6)
    assert np.count_nonzero(batch["role"] == REJECTED) == 2


def test_what_two_traces_say_alike_is_written_once_and_named(
    traces: Path, shards: Path, tmp_path: Path
) -> None:
    once = write_pairs([traces], [shards], tmp_path / "once")
    twice = write_pairs([traces, traces], [shards], tmp_path / "twice")
    assert twice.rows == once.rows and twice.faults == {"repeated pair": once.rows}
    assert read_manifest(tmp_path / "twice") == twice


def test_a_pair_whose_image_is_in_no_shard_is_refused(traces: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    write_shards(QUESTIONS[:2], some, DataConfig(shards=some))
    manifest = write_pairs([traces], [some], tmp_path / "pairs")
    assert manifest.faults["missing image"] > 0 < manifest.rows
    with pytest.raises(ValueError, match="there is no preference that can be used"):
        write_pairs([traces], [], tmp_path / "none")


class Held(bytes):
    """Bytes that count how many of their kind there are."""

    now = most = 0

    def __new__(cls, data: bytes) -> Held:  # of a copy too
        Held.now += 1
        Held.most = max(Held.most, Held.now)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Held.now -= 1


def test_a_few_images_are_held_at_once_however_many_there_are(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the rows that are read and written at the time, not of the shards or the pairs."""
    many = World(tuple(example(number) for number in range(100, 160)))
    path, folder = tmp_path / "many.jsonl", tmp_path / "many"
    write_traces(path, ask_all(many))
    monkeypatch.setattr("stagebeam.data.parts._GROUP_ROWS", 4)
    write_shards(many.examples, folder, DataConfig(shards=folder))
    monkeypatch.setattr("stagebeam.data.preferences._GROUP_ROWS", 8)
    monkeypatch.setattr("stagebeam.data.shards.Image", lambda data, path: Image(Held(data), path))
    manifest = write_pairs([path], [shards, folder], tmp_path / "pairs")
    assert manifest.rows > 100
    # A group to write, and a group that is read: of 4 rows, or the 6 of the other folder.
    assert 8 <= Held.most <= 8 + 2 * 6
    assert all(row.images for row in read_preferences(tmp_path / "pairs"))


def test_a_folder_in_use_is_left_alone(traces: Path, shards: Path, tmp_path: Path) -> None:
    write_pairs([traces], [shards], tmp_path / "pairs")
    before = (tmp_path / "pairs" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="holds shards already; name another folder"):
        write_pairs([traces], [shards], tmp_path / "pairs", 1.0)
    assert (tmp_path / "pairs" / "manifest.json").read_bytes() == before


def test_the_command_says_how_many_pairs_there_are(
    traces: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([traces, traces], tmp_path / "pairs", [shards], 0.0)
    rows = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["rows"]
    said = f"{rows} pairs in {tmp_path / 'pairs'}; left out: {rows} repeated pair\n"
    assert capsys.readouterr().out == said


def test_a_recipe_may_name_them_for_judge_training(tmp_path: Path) -> None:
    sections = {
        "name": "r",
        "model": {"path": "m"},
        "data": {"shards": "s"},
        "judge_training": {"output_dir": "j", "pairs": str(tmp_path)},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    recipe: Recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.judge_training is not None and recipe.judge_training.pairs == tmp_path
