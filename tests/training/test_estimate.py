"""What is predicted of a run, against what tiny runs really take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memory_rank
import numpy as np
import pytest
import ranks
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from stagebeam.data.ledger import Plan
from stagebeam.data.order import read_rows
from stagebeam.data.writing import write_shards
from stagebeam.models.load import load
from stagebeam.models.recompute import recompute
from stagebeam.models.tiny.build import BUILDERS, build_tiny
from stagebeam.recipe import DataConfig, ModelConfig, Recipe
from stagebeam.records import Example
from stagebeam.train_config import LoraConfig, TrainConfig
from stagebeam.training.activations import Activations, activations
from stagebeam.training.estimate import Estimate, estimate
from stagebeam.training.memory import Memory, Part, memory
from stagebeam.training.objectives import Supervised
from stagebeam.training.outline import Outline, outline

NO_ACTIVATIONS = Activations({}, 0.0, 0.0, 0.0, 0.0)
CLOSE = 0.04  # of bytes; stages 1 and 2 keep the gradients at a share's edges whole
CLOSE_ACTIVATIONS = 0.03
Case = tuple[str, int, dict[str, Any]]


def train(world: int = 1, stage: int = 3, **changes: Any) -> TrainConfig:
    settings = {"num_workers": world, "zero_stage": stage, "global_batch_size": 4, **changes}
    return TrainConfig(output_dir=Path("unused"), use_gpu=False, **settings)


def model_config(folder: Path, dtype: str = "float32", family: str = "mllama") -> ModelConfig:
    return ModelConfig.model_validate({"path": str(folder), "dtype": dtype, "family": family})


def outlined(folder: Path, dtype: str = "float32", **changes: Any) -> Outline:
    family = AutoConfig.from_pretrained(folder).model_type
    return outline(str(folder), model_config(folder, dtype, family), train(**changes))


@pytest.fixture(scope="module")
def folders(scenes: list[Example], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, and a larger Mllama that shares its key heads."""
    parent = tmp_path_factory.mktemp("families")
    texts = [message.text for example in scenes for message in example.messages]
    made = {family: parent / family for family in BUILDERS}
    for family, folder in made.items():
        build_tiny(folder, texts, family=family)
    larger = AutoConfig.from_pretrained(made["mllama"])
    text = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    for key, value in {**text, **heads, "cross_attention_layers": [1, 4]}.items():
        setattr(larger.text_config, key, value)
    made["larger"] = parent / "larger"
    build_tiny(made["larger"], texts)
    larger.save_pretrained(made["larger"])
    return made


CASES: list[Case] = [
    ("float32", 1, {}),
    ("bfloat16", 3, {}),
    ("float32", 3, {"lora": LoraConfig(rank=4)}),
]
MORE_CASES: list[Case] = [
    *CASES,
    ("float32", 3, {}),
    ("bfloat16", 2, {}),
    ("float32", 3, {"trainable": ("projector", "cross_attention")}),
    ("float32", 3, {"offload": "optimizer"}),
]


@pytest.mark.parametrize(
    ("world", "cases"),
    [
        pytest.param(2, CASES, id="two ranks"),
        pytest.param(1, MORE_CASES, id="one rank", marks=pytest.mark.slow),
        pytest.param(2, MORE_CASES, id="two ranks, more", marks=pytest.mark.slow),
    ],
)
def test_weights_gradients_and_states_are_what_deepspeed_holds(
    world: int, cases: list[Case], tiny_folder: Path, tmp_path: Path
) -> None:
    settings = [(dtype, train(world, stage, **more)) for dtype, stage, more in cases]
    dumped = [{"dtype": d, "train": t.model_dump(mode="json")} for d, t in settings]
    run = {"model": str(tiny_folder), "cases": dumped}
    for seen in ranks.launch(memory_rank.__file__, tmp_path / "run", run, world):
        for (dtype, config), case in zip(settings, seen, strict=True):
            model = model_config(tiny_folder, dtype)
            weights = outline(str(tiny_folder), model, config).weights
            parts = memory(weights, model, config, NO_ACTIVATIONS).parts
            held = {p.name: p.device + p.host for p in parts if p.phase == "held"}
            if world == 1:  # alone, a rank's share is the whole weight
                case.pop("small weights, whole", None)
            assert {name: held.get(name) for name in case} == pytest.approx(case, rel=CLOSE)


@pytest.mark.parametrize("family", [*BUILDERS, "larger"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_a_forward_pass_saves(
    family: str,
    dtype: str,
    checkpointing: bool,
    folders: dict[str, Path],
    scenes: list[Example],
) -> None:
    made = outlined(folders[family], dtype)
    encoder = made.family.encoder(str(folders[family]))
    arrays = encoder([e for e in scenes if e.images][:4])[0]
    model = AutoModelForImageTextToText.from_config(made.config, dtype=getattr(torch, dtype))
    if checkpointing:
        recompute(model.train())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Any] = {}  # kept, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    def keep(layer: Any, inputs: Any, named: dict[str, Any]) -> None:
        for value in named.values():
            if isinstance(value, torch.Tensor):
                pack(value)

    if checkpointing:  # what a recomputed layer is given by name stays with it, past autograd
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = {key: torch.from_numpy(value) for key, value in arrays.items()}
        loss = Supervised(model, made.family, encoder)(**batch)
    assert loss.requires_grad
    saved = sum(storage.nbytes() for storage in storages.values())
    size = {"float32": 4, "bfloat16": 2}[dtype]
    predicted = activations(made, arrays, size, checkpointing)
    assert predicted.saved == pytest.approx(saved, rel=CLOSE_ACTIVATIONS)


@pytest.mark.parametrize("family", BUILDERS)
def test_parameters_by_group_are_those_of_the_loaded_model(
    family: str, folders: dict[str, Path]
) -> None:
    loaded = load(str(folders[family]), "cpu")
    counts: dict[str, int] = {}
    for name, parameter in loaded.model.named_parameters():
        group = loaded.family.group_of(loaded.model.config, name)
        counts[group] = counts.get(group, 0) + parameter.numel()
    assert outlined(folders[family]).count() == counts


def test_frozen_groups_save_nothing_before_the_first_trained_one(tiny_folder: Path) -> None:
    arrays = {
        "input_ids": np.ones((2, 8), np.int64),
        "attention_mask": np.ones((2, 8), np.int64),
        "aspect_ratio_mask": np.ones((2, 1, 1), np.int64),
        "pixel_values": np.ones((2, 3, 48, 48), np.uint8),
    }
    whole = activations(outlined(tiny_folder), arrays, 4, False)
    for trained in ({"trainable": ("language",)}, {"lora": LoraConfig()}):
        part = activations(outlined(tiny_folder, **trained), arrays, 4, False)
        assert part.kept == {g: whole.kept[g] for g in ("language", "cross_attention")}


def test_the_peak_is_the_larger_of_backward_and_step() -> None:
    held, kept = Part("a", "held", 10.0, 3.0), Part("b", "kept", 5.0)
    logits, again = Part("c", "logits", 4.0), Part("d", "recomputed", 2.0)
    backward = Memory((held, kept, logits, again, Part("e", "step", 8.0)))
    assert (backward.peak, backward.host) == (10 + 5 + 4, 3)
    assert Memory((held, kept, logits, again, Part("e", "step", 20.0))).peak == 10 + 20


def test_offloaded_states_lie_on_the_host_and_nowhere_else(tiny_folder: Path) -> None:
    def parts(offload: str) -> Memory:
        config, model = train(2, offload=offload), model_config(tiny_folder)
        return memory(outlined(tiny_folder).weights, model, config, NO_ACTIVATIONS)

    none, states, everything = parts("none"), parts("optimizer"), parts("all")
    numbers = sum(outlined(tiny_folder).count().values()) / 2
    assert none.host == 0 and states.peak < none.peak and everything.peak < states.peak
    assert everything.host - states.host == pytest.approx(4 * numbers, rel=CLOSE)
    assert states.host > (4 + 4 + 8) * numbers  # gradients, master weights, moments


@pytest.fixture(scope="module")
def shards(scenes: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate") / "shards"
    write_shards(scenes, folder, DataConfig(shards=folder, rows_per_shard=100))
    return folder


def predicted(folder: Path, shards: Path, rows: int = 0, **changes: Any) -> Estimate:
    config = train(2, epochs=2, **changes)
    data = DataConfig(shards=shards, max_length=256, length_window=2)
    recipe = Recipe(name="tiny", model=model_config(folder), data=data, train=config)
    weighed = read_rows(shards, "train", {})
    plan = Plan(weighed, 4, 2, epochs=2, window=2)
    return estimate(recipe, config, plan, rows=rows, tflops=0.5)


def test_tokens_flops_and_hours_follow_from_the_rows(
    tiny_folder: Path, shards: Path, scenes: list[Example]
) -> None:
    made = predicted(tiny_folder, shards)
    encoder = load(str(tiny_folder), "cpu").encoder
    rows = [encoder.encode(example) for example in scenes]
    assert made.sample is not None and made.duration is not None
    assert sorted(made.sample.lengths) == sorted(len(row.input_ids) for row in rows)
    assert made.work.tokens_a_row == pytest.approx(np.mean([len(r.input_ids) for r in rows]))
    assert made.work.steps == 2 * 300 // 4
    assert made.sample.images.sum() == sum(len(e.images) for e in scenes)
    assert made.batches[1].tokens == max(len(row.input_ids) for row in rows)
    assert made.batches[0].tokens <= made.batches[1].tokens
    # nothing is frozen: backward costs twice; tower and decoder are computed again
    forward = made.work.forward_flops
    assert made.work.model_flops == pytest.approx(3 * sum(forward.values()))
    again = forward["language"] + forward["cross_attention"] + forward["vision"]
    assert made.work.hardware_flops == pytest.approx(made.work.model_flops + again)
    seconds = made.work.model_flops * made.work.steps / (2 * 0.5e12 * 0.35)
    assert made.duration.hours == pytest.approx(seconds / 3600)
    assert made.duration.low < made.duration.hours < made.duration.high


def test_a_sample_is_spread_over_the_shards_and_the_same_each_time(
    tiny_folder: Path, shards: Path
) -> None:
    one, two = (predicted(tiny_folder, shards, rows=30).sample for _ in range(2))
    assert one is not None and two is not None
    assert sorted(one.numbers) == list(range(5, 300, 10))
    assert list(one.lengths) == list(two.lengths) and one.padding == two.padding
    assert 0 < one.padding < 0.5


def test_disk_is_the_checkpoints_formula_and_the_exports_file(
    tiny_folder: Path, shards: Path
) -> None:
    made = predicted(tiny_folder, shards, rows=8)
    numbers = sum(made.parameters.values())
    assert made.disk.checkpoint == 12 * numbers and made.disk.checkpoint_a_rank == 6 * numbers
    exported = (tiny_folder / "model.safetensors").stat().st_size
    assert made.disk.export == pytest.approx(exported, rel=0.02)  # its header has the names
    adapters = predicted(tiny_folder, shards, rows=8, lora=LoraConfig(rank=4))
    assert adapters.disk.export == made.disk.export
    assert adapters.disk.checkpoint == 12 * sum(adapters.trained.values()) < made.disk.checkpoint


def test_without_shards_rows_are_as_long_as_they_may_be(folders: dict[str, Path]) -> None:
    for family in BUILDERS:
        config = train(max_steps=10)
        data = DataConfig(shards=Path("nowhere"), max_length=64)
        model = model_config(folders[family], family=family)
        recipe = Recipe(name="tiny", model=model, data=data, train=config)
        made = estimate(recipe, config, None)
        assert made.sample is None and made.duration is None and made.work.steps == 10
        assert [batch.tokens for batch in made.batches] == [64]
        assert made.work.forward_flops["vision"] > 0


def test_a_model_that_is_not_on_this_disk_is_one_sentence() -> None:
    config = train()
    data = DataConfig(shards=Path("nowhere"))
    recipe = Recipe(name="tiny", model=model_config(Path("nobody/none")), data=data, train=config)
    with pytest.raises(ValueError, match=r"There is no model folder nobody/none, and no download"):
        estimate(recipe, config, None)
