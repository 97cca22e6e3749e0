"""The loop on two ranks: held-out rows, faults of the numbers, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loop_rank
import peft
import pytest
import torch
import zero_rank
from ranks import launch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, GenerationConfig

from stagebeam.data.writing import write_shards
from stagebeam.models.encoder import IGNORE, EncodedRow
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import DataConfig, load_recipe
from stagebeam.records import Example
from stagebeam.training.objectives import Supervised

CLOSE = 1e-5  # relative: float32 sums in another order
HELD_OUT = 7  # rows: one rank has one more, and neither fills its batches of two
SAMPLES = 3
NEW_TOKENS = 6
POISONED = zero_rank.step_examples(1)[1].id  # on the second rank, in the second step
RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
LORA = {"rank": 2, "groups": ["cross_attention"]}

Seen = dict[str, Any]


@pytest.fixture(scope="module")
def held_out(scenes: list[Example]) -> list[Example]:
    return scenes[40 : 40 + HELD_OUT]


@pytest.fixture(scope="module")
def llava(scenes: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny LLaVA."""
    folder = tmp_path_factory.mktemp("llava") / "base"
    texts = [message.text for example in scenes for message in example.messages]
    build_tiny(folder, texts, family="llava")
    return folder


def llava_stage(number: int) -> dict[str, Any]:
    """What the recipe of one of LLaVA's stages trains, and how it is divided over ranks."""
    train = load_recipe(RECIPES / f"llava-1.5-7b-stage{number}.yaml").train
    assert train is not None and train.trainable is not None
    return {"trainable": list(train.trainable), "zero_stage": train.zero_stage}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop") / "run"


@pytest.fixture(scope="module")
def seen(
    folder: Path, tiny_folder: Path, llava: Path, held_out: list[Example], scenes: list[Example]
) -> list[Seen]:
    """What both ranks saw of every scenario."""
    shards = folder.parent / "shards"
    write_shards(scenes[40:80], shards, DataConfig(shards=shards))
    split = held_out[0].split
    evaluation = {"shards": str(shards), "split": split, "every": 1000, "rows": HELD_OUT}
    evaluation |= {"samples": SAMPLES, "max_new_tokens": NEW_TOKENS}
    still = {"learning_rate": 1e-30}  # weights stay as they are, so that the answers are known
    scenarios: list[dict[str, Any]] = [
        {"name": "held-out", "train": {"evaluation": evaluation, **still}},
        {"name": "poisoned", "train": {}, "poison": POISONED},
        {"name": "adapters", "train": {"lora": LORA}},
        {"name": "recomputed", "train": {"gradient_checkpointing": True}},
        {"name": "kept", "train": {"gradient_checkpointing": False}},
        {"name": "projector", "train": {"trainable": ["projector"]}},
        {"name": "offloaded", "train": {"offload": "all"}},
        {"name": "partly-offloaded", "train": {"offload": "optimizer", "zero_stage": 2}},
    ]
    for scenario in scenarios:
        scenario["model"] = str(tiny_folder)
    first = {"name": "llava-stage-1", "train": llava_stage(1), "model": str(llava)}
    second = {"name": "llava-stage-2", "train": llava_stage(2)}
    scenarios += [first, {**second, "model": str(folder / "llava-stage-1")}]
    return launch(loop_rank.__file__, folder, {"scenarios": scenarios}, world=2)


def test_the_held_out_loss_is_that_of_every_row(
    seen: list[Seen], loaded: Loaded, held_out: list[Example]
) -> None:
    arrays, _ = loaded.encoder(held_out)
    batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
    with torch.no_grad():
        objective = Supervised(loaded.model, loaded.family, loaded.encoder)
        logprobs = objective.row_logprobs(**batch)
    tokens = int((batch["labels"] != IGNORE).sum())
    for rank in seen:
        (report,) = rank["held-out"]["evaluations"]  # once, at the end
        assert report["step"] == loop_rank.STEPS
        assert report["tokens"] == tokens
        assert report["loss"] == pytest.approx(-logprobs.sum().item() / tokens, rel=CLOSE)


def test_samples_are_what_each_row_is_answered_alone(
    seen: list[Seen], loaded: Loaded, held_out: list[Example]
) -> None:
    first, second = (rank["held-out"]["evaluations"][0]["samples"] for rank in seen)
    assert second == []
    texts = {sample["row_id"]: sample["text"] for sample in first}
    assert texts == {row.id: answered(loaded, row) for row in held_out[:SAMPLES]}
    assert any(texts.values())


def answered(loaded: Loaded, row: Example) -> str:
    encoder = loaded.encoder
    images = tuple(encoder.image(image.bytes) for image in row.images)
    ids = encoder.prompt_ids(row.messages[:-1], images)
    arrays = encoder.collate([EncodedRow(ids, [IGNORE] * len(ids), images)])
    batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
    greedy = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=encoder.tokenizer.eos_token_id,
        pad_token_id=encoder.tokenizer.pad_token_id,
    )
    with torch.no_grad():
        inputs = loaded.family.generation(loaded.model, batch, encoder.normalisation)
        out = loaded.model.generate(**inputs, generation_config=greedy)[0, len(ids) :]
    return str(encoder.tokenizer.decode(out, skip_special_tokens=True)).strip()


def test_a_loss_that_is_not_finite_stops_every_rank_and_names_the_row(seen: list[Seen]) -> None:
    for rank in seen:
        assert [report["step"] for report in rank["poisoned"]["steps"]] == [1]
        assert rank["poisoned"]["fault"] == (
            f"The loss of step 2 is not finite: of the rows {POISONED}."
        )


@pytest.mark.usefixtures("seen")
def test_the_step_that_failed_has_changed_nothing(folder: Path) -> None:
    """One step fewer than an unharmed run; its weights are finite."""
    weights = load_file(folder / "poisoned" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_recomputing_activations_and_offloading_change_nothing(seen: list[Seen]) -> None:
    def losses(name: str) -> list[float]:
        return [report["loss"] for report in seen[0][name]["steps"]]

    assert losses("recomputed") == losses("kept")
    assert losses("offloaded") == pytest.approx(losses("kept"), rel=CLOSE)
    assert losses("partly-offloaded") == pytest.approx(losses("kept"), rel=CLOSE)
    assert losses("kept")[1] != losses("kept")[0]


def test_the_export_computes_what_was_trained_with_adapters(
    seen: list[Seen], folder: Path, tiny_folder: Path
) -> None:
    together = load(str(folder / "adapters"), "cpu")
    base = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    apart = peft.PeftModel.from_pretrained(base, str(folder / "adapters" / "adapter")).eval()
    told = seen[0]["adapters"]["logprobs"]
    for model in (together.model, apart.base_model.model):
        assert logprobs(model, together) == pytest.approx(told, rel=1e-4)
    assert logprobs(AutoModelForImageTextToText.from_pretrained(tiny_folder), together) != (
        pytest.approx(told, rel=1e-4)
    )


def logprobs(model: Any, loaded: Loaded) -> list[float]:
    arrays, _ = loaded.encoder(zero_rank.step_examples(0))
    batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
    with torch.no_grad():
        objective = Supervised(model.eval(), loaded.family, loaded.encoder)
        found: list[float] = objective.row_logprobs(**batch).tolist()
    return found


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(
    ("run", "begins"),
    [
        ("projector", ("model.multi_modal_projector.",)),
        ("adapters", ("model.language_model.layers.1.",)),  # the tiny model's one that crosses
    ],
)
def test_only_what_is_named_is_trained(
    run: str, begins: tuple[str, ...], folder: Path, tiny_folder: Path
) -> None:
    assert all(name.startswith(begins) for name in changed(tiny_folder, folder / run))


@pytest.mark.usefixtures("seen")
def test_llava_s_first_stage_trains_the_projection_and_the_second_all_but_the_tower(
    folder: Path, llava: Path
) -> None:
    """To the bit, in the folders that the stages leave, the second opening the first's."""
    names = set(load(str(llava), "cpu").model.state_dict())
    projection = {name for name in names if name.startswith("model.multi_modal_projector.")}
    tower = {name for name in names if name.startswith("model.vision_tower.")}
    assert projection and tower
    assert changed(llava, folder / "llava-stage-1") == projection
    assert changed(folder / "llava-stage-1", folder / "llava-stage-2") == names - tower


def changed(before: Path, after: Path) -> set[str]:
    """Weights that are not the same to the bit; some are not."""
    old, new = (load(str(folder), "cpu").model.state_dict() for folder in (before, after))
    assert old.keys() == new.keys()
    different = {name for name in old if not torch.equal(old[name], new[name])}
    assert different
    return different


def test_a_step_is_measured(seen: list[Seen]) -> None:
    for rank in seen:
        for report in rank["kept"]["steps"]:
            assert report["rows"] == 4
            assert report["grad_norm"] > 0
            assert report["memory_bytes"] > 50 << 20
            assert 0 <= report["data_wait_seconds"] <= report["seconds"]
    assert seen[0]["recomputed"]["steps"][0]["recomputed"]
    assert not seen[0]["kept"]["steps"][0]["recomputed"]
