"""Judge training's batches: gold rows and pairs, drawn alike whenever they are drawn."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from stagebeam.data.preferences import Preference, first_fault, write_preferences
from stagebeam.models.encoder import IGNORE
from stagebeam.models.load import Loaded
from stagebeam.records import Example
from stagebeam.training.objectives import CHOSEN, GOLD, REJECTED
from stagebeam.training.preference import PreferenceEncoder


@pytest.fixture(scope="module")
def pairs(scenes: list[Example]) -> list[Preference]:
    """Twenty, each with a wrong caption after the gold summary."""
    single = [e for e in scenes if len(e.messages) == 2][:20]
    wrong = [e.messages[-1].text.replace("<CAPTION>", "<CAPTION> none") for e in single]
    found = [first_fault(e, text) for e, text in zip(single, wrong, strict=True)]
    return [pair for pair in found if pair is not None]


@pytest.fixture(scope="module")
def path(pairs: list[Preference], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    assert write_preferences(path, pairs) == 20
    return path


def labelled(batch: dict[str, np.ndarray], row: int) -> list[int]:
    return [label for label in batch["labels"][row].tolist() if label != IGNORE]


def test_equal_examples_bring_equal_pairs_and_others_other_pairs(
    loaded: Loaded, path: Path, scenes: list[Example]
) -> None:
    def draw(examples: list[Example]) -> dict[str, np.ndarray]:
        return PreferenceEncoder(loaded.encoder, path, 1.0)(examples)[0]

    first, again, other = draw(scenes[:4]), draw(scenes[:4]), draw(scenes[4:8])
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[key], again[key]) for key in first)

    def pairs_of(batch: dict[str, np.ndarray]) -> list[list[int]]:
        return [labelled(batch, row) for row in np.flatnonzero(batch["role"] != GOLD).tolist()]

    assert pairs_of(first) != pairs_of(other)


def test_rows_are_gold_then_chosen_then_rejected_of_the_same_pairs(
    loaded: Loaded, path: Path, pairs: list[Preference], scenes: list[Example]
) -> None:
    batch, _ = PreferenceEncoder(loaded.encoder, path, 0.75)(scenes[:4])
    assert batch["role"].tolist() == [GOLD] * 4 + [CHOSEN] * 3 + [REJECTED] * 3
    plain = loaded.encoder(scenes[:4])[0]
    width = plain["input_ids"].shape[1]
    assert np.array_equal(batch["labels"][:4, :width], plain["labels"])
    ids = loaded.encoder.ids
    known = [(ids(pair.chosen), ids(pair.rejected)) for pair in pairs]
    for row in (4, 5, 6):
        assert (labelled(batch, row), labelled(batch, row + 3)) in known


def test_a_pairs_loss_is_on_the_stage_after_prompt_and_prefix(
    loaded: Loaded, path: Path, pairs: list[Preference], scenes: list[Example]
) -> None:
    encoder = loaded.encoder
    batch, _ = PreferenceEncoder(encoder, path, 1.0)(scenes[:4])
    whole = []
    for pair in pairs:
        prompt = encoder.prompt_ids(pair.messages, [{}] * len(pair.images)) + encoder.ids(
            pair.prefix
        )
        whole.append((prompt, encoder.ids(pair.rejected), len(pair.images)))
    for row in np.flatnonzero(batch["role"] == REJECTED).tolist():
        length = int(batch["attention_mask"][row].sum())
        ids, text = batch["input_ids"][row, :length].tolist(), labelled(batch, row)
        assert (ids[: -len(text)], text, int(batch["image_mask"][row].sum())) in whole
        assert batch["labels"][row, length - len(text) : length].tolist() == text


@pytest.mark.parametrize(("per_row", "expected"), [(0.1, 1), (0.5, 2), (2.0, 8)])
def test_pairs_come_in_proportion_and_at_least_one(
    loaded: Loaded, path: Path, scenes: list[Example], per_row: float, expected: int
) -> None:
    batch, _ = PreferenceEncoder(loaded.encoder, path, per_row)(scenes[:4])
    assert (batch["role"] == CHOSEN).sum() == expected == (batch["role"] == REJECTED).sum()


def test_it_pickles_as_paths(loaded: Loaded, path: Path, scenes: list[Example]) -> None:
    encode = PreferenceEncoder(loaded.encoder, path, 1.0)
    before, _ = encode(scenes[:2])
    packed = pickle.dumps(encode)
    assert len(packed) < 1000  # neither the pairs nor the processor travel
    after, _ = pickle.loads(packed)(scenes[:2])
    assert all(np.array_equal(before[key], after[key]) for key in before)
