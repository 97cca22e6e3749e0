"""Checkpoints by DeepSpeed engines over gloo: at the same size to the bit, at another closely."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import shards_rank
import torch
from ranks import launch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stagebeam.training.shards import file_name

# As in test_zero.py; there are fewer steps and a constant learning rate.
CLOSE = 1e-5  # relative, of losses
CLOSE_WEIGHT = shards_rank.LEARNING_RATE / 10
KINDS = ("master", "exp_avg", "exp_avg_sq")


def scenario(save: Path, stage: int, load: Path | None = None, **other: Any) -> dict[str, Any]:
    plain = {"dtype": "float32", "offload": "none", "frozen": None}
    start = None if load is None else str(load / str(shards_rank.SAVED))
    return {**plain, "zero_stage": stage, "save": str(save), "load": start, **other}


def unbroken_and_resumed(folder: Path, name: str, stage: int, **other: Any) -> dict[str, Any]:
    """A run without a break, and one by a new engine from its checkpoint."""
    whole, rest = folder / name, folder / f"{name}-resumed"
    return {
        whole.name: scenario(whole, stage, **other),
        rest.name: scenario(rest, stage, load=whole, **other),
    }


def start(folder: Path, model: Path, scenarios: dict[str, Any], world: int) -> list[dict[str, Any]]:
    run = {"model": str(model), "scenarios": scenarios}
    return launch(shards_rank.__file__, folder, run, world)


def headers(folder: Path) -> dict[Path, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path] = json.loads(file.metadata()["stagebeam"])
    return found


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Whole flat tensors out of all ranks' files, each element written by exactly one of them."""
    whole: dict[str, torch.Tensor] = {}
    times: dict[str, torch.Tensor] = {}
    for path, header in headers(folder).items():
        tensors = load_file(path)
        assert tensors.keys() == {f"{kind}/{name}" for kind in KINDS for name in header["pieces"]}
        for key, run in tensors.items():
            piece = header["pieces"][key.split("/", 1)[1]]
            assert run.dtype == torch.float32
            size = prod(piece["shape"])
            target = whole.setdefault(key, torch.zeros(size))
            target[piece["start"] : piece["start"] + len(run)] = run
            written = times.setdefault(key, torch.zeros(size))
            written[piece["start"] : piece["start"] + len(run)] += 1
    assert all((written == 1).all() for written in times.values())
    return whole


def assert_resumed_to_the_bit(folder: Path, name: str, seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        whole, rest = rank[name], rank[f"{name}-resumed"]
        assert rest["start"] == shards_rank.SAVED
        assert rest["losses"] == whole["losses"][shards_rank.SAVED :]
    last = str(shards_rank.STEPS)
    expected = state(folder / name / last)
    trained = state(folder / f"{name}-resumed" / last)
    assert trained.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(trained[key], tensor), key
    early = state(folder / name / str(shards_rank.SAVED))
    assert not any(torch.equal(early[key], tensor) for key, tensor in expected.items())


def assert_close(seen: list[dict[str, Any]], name: str, whole: dict[str, Any]) -> None:
    for rank in seen:
        assert rank[name]["start"] == shards_rank.SAVED
        assert rank[name]["losses"] == pytest.approx(whole["losses"][2:], rel=CLOSE)


def assert_close_weights(folder: Path, whole: Path) -> None:
    last = str(shards_rank.STEPS)
    expected, trained = state(whole / last), state(folder / last)
    assert trained.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(trained[key], tensor, rtol=0, atol=CLOSE_WEIGHT, msg=key)


@pytest.fixture(scope="module")
def two_ranks(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Runs at two ranks that the tests look at or go on from."""
    folder = tmp_path_factory.mktemp("shards")
    scenarios: dict[str, Any] = {}
    for stage in (0, 1, 2, 3):
        scenarios |= unbroken_and_resumed(folder, f"stage-{stage}", stage)
    scenarios |= unbroken_and_resumed(folder, "frozen", 3, frozen="vision_model")
    scenarios |= unbroken_and_resumed(folder, "bfloat16", 3, dtype="bfloat16")
    scenarios["3-to-1"] = scenario(folder / "3-to-1", 1, load=folder / "stage-3")
    return folder, start(folder / "two", tiny_folder, scenarios, world=2)


RESUMED = ["stage-0", "stage-1", "stage-2", "stage-3", "frozen", "bfloat16"]


@pytest.mark.parametrize("name", RESUMED)
def test_the_same_ranks_go_on_to_the_last_bit(
    two_ranks: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    assert_resumed_to_the_bit(two_ranks[0], name, two_ranks[1])


def test_files_say_what_they_are(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    folder = two_ranks[0] / "stage-3" / "2"
    names = ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for rank, header in enumerate(headers(folder).values()):
        assert (header["format"], header["step"], header["optimizer_step"]) == (1, 2, 2)
        assert (header["rank"], header["world_size"]) == (rank, 2)
    frozen = state(two_ranks[0] / "frozen" / "2").keys()
    missing = {key for key in state(folder) if key not in frozen}
    assert missing and all("vision_model" in key for key in missing)


def test_a_checkpoint_of_stage_3_is_read_at_stage_1(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, seen = two_ranks
    assert_close(seen, "3-to-1", seen[0]["stage-3"])
    assert_close_weights(folder / "3-to-1", folder / "stage-3")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (header,) = [found for file, found in headers(path.parent).items() if file == path]
    change(header)
    save_file(load_file(path), path, {"stagebeam": json.dumps(header)})


def broken(good: Path, other: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Copies of a checkpoint, each spoilt in another way, and what must be said of it."""
    first, second = file_name(0, 2), file_name(1, 2)

    def spoilt(name: str) -> Path:
        return Path(shutil.copytree(good, folder / name))

    def reshape(header: dict[str, Any]) -> None:
        for name, piece in header["pieces"].items():
            if "lm_head" in name:
                piece["shape"] = piece["shape"][::-1]

    missing = spoilt("missing")
    (missing / second).unlink()
    torn = spoilt("torn") / second
    torn.write_bytes(torn.read_bytes()[:-100])
    beheaded = spoilt("beheaded") / second
    beheaded.write_bytes(b"")
    foreign = spoilt("foreign") / first
    save_file(load_file(foreign), foreign)
    mixed = spoilt("mixed")
    shutil.copy(good.parent / str(shards_rank.STEPS) / second, mixed / second)
    shaped = spoilt("shaped")
    rewrite(shaped / first, reshape)
    rewrite(shaped / second, reshape)
    hole = spoilt("hole")
    rewrite(hole / second, lambda header: header["pieces"].popitem())
    (folder / "empty").mkdir()
    return {
        "missing": (missing, f"The checkpoint {missing} is incomplete: {second} is missing."),
        "torn": (torn.parent, f"The checkpoint file {torn} is torn."),
        "beheaded": (beheaded.parent, f"The checkpoint file {beheaded} is torn."),
        "foreign": (foreign.parent, f"{foreign} is not a checkpoint of a kind"),
        "mixed": (mixed, f"The checkpoint {mixed} mixes files of several checkpoints."),
        "shaped": (shaped, "lm_head.weight with shape ["),
        "hole": (hole, "does not hold all of"),
        "empty": (folder / "empty", f"There is no checkpoint in {folder / 'empty'}."),
        "other": (other, "is trained but missing."),
    }


def test_another_number_of_ranks_goes_on_and_what_cannot_be_used_changes_nothing(
    two_ranks: tuple[Path, list[dict[str, Any]]], tiny_folder: Path, tmp_path: Path
) -> None:
    folder, seen = two_ranks
    alone = {
        "2-to-1": scenario(tmp_path / "2-to-1", 3, load=folder / "stage-3"),
        "alone": scenario(tmp_path / "alone", 2),
    }
    one = start(tmp_path / "one", tiny_folder, alone, world=1)
    assert_close(one, "2-to-1", seen[0]["stage-3"])
    assert_close_weights(tmp_path / "2-to-1", folder / "stage-3")

    good = folder / "stage-3" / str(shards_rank.SAVED)
    cases = broken(good, folder / "frozen" / str(shards_rank.SAVED), tmp_path)
    refused = [(str(bad), str(bad)) for bad, _ in cases.values()]
    refused.append((str(good), str(cases["torn"][0])))  # the first rank alone would go on
    back = {
        "1-to-2": scenario(tmp_path / "1-to-2", 3, load=tmp_path / "alone"),
        "refused": scenario(tmp_path / "unused", 3, load=good.parent, refused=refused),
    }
    two = start(tmp_path / "back", tiny_folder, back, world=2)
    assert_close(two, "1-to-2", one[0]["alone"])
    assert_close_weights(tmp_path / "1-to-2", tmp_path / "alone")
    for rank in two:
        said = rank["refused"]["sentences"]
        assert said[-1] == said[list(cases).index("torn")]
        for (name, (_, expected)), sentence in zip(cases.items(), said, strict=False):
            assert expected in sentence, name
            assert sentence.endswith(".") and "\n" not in sentence
        assert rank["refused"]["unchanged"]
        # weights that are gathered already are read from the checkpoint too
        assert rank["refused"]["next_loss"] == seen[0]["stage-3"]["losses"][shards_rank.SAVED]


@pytest.mark.slow
def test_in_bfloat16_and_with_offload_too(tiny_folder: Path, tmp_path: Path) -> None:
    scenarios: dict[str, Any] = {}
    for stage in (0, 1, 2):
        scenarios |= unbroken_and_resumed(tmp_path, f"b{stage}", stage, dtype="bfloat16")
    for stage in (1, 2, 3):
        scenarios |= unbroken_and_resumed(tmp_path, f"o{stage}", stage, offload="optimizer")
    for dtype in ("float32", "bfloat16"):
        scenarios |= unbroken_and_resumed(tmp_path, f"all-{dtype}", 3, offload="all", dtype=dtype)
    seen = start(tmp_path / "two", tiny_folder, scenarios, world=2)
    for name in [name for name in scenarios if not name.endswith("-resumed")]:
        assert_resumed_to_the_bit(tmp_path, name, seen)
