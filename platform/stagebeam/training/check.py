"""Whether a recipe's training can run, told before any GPU is taken.

Every check is made, whatever the others found; one that needs what another did not find is left
out. Weights are not loaded: names and shapes come from the headers of the safetensors files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from stagebeam.data.layout import TRAIN_SPLIT
from stagebeam.data.ledger import Plan
from stagebeam.data.manifest import Manifest, read_manifest
from stagebeam.models.encoder import RowEncoder
from stagebeam.models.load import check_loading
from stagebeam.models.registry import family_of
from stagebeam.recipe import Recipe, describe
from stagebeam.records import Message
from stagebeam.storage import Place, is_url, open_parquet
from stagebeam.train_config import TrainConfig
from stagebeam.training.memory import zero_config
from stagebeam.training.outline import Outline, local_folder, outline
from stagebeam.training.sample import Sample, Sampler
from stagebeam.training.trainable import check_groups, check_packing

T = TypeVar("T")
PlanOf = Callable[[], Plan]
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_NAMED = 3  # of what is wrong in one sentence
_COLUMNS = ["id", "split", "source", "images.list.element.path"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found in a sentence."""

    name: str
    status: Literal["ok", "wrong", "left out"]
    says: str


@dataclass(frozen=True, slots=True)
class Checked:
    """All checks of a recipe, and the rows that were encoded for it."""

    checks: tuple[Check, ...]
    sample: Sample | None

    @property
    def ok(self) -> bool:
        return all(check.status != "wrong" for check in self.checks)


class _Checks:
    def __init__(self) -> None:
        self.made: list[Check] = []

    def run(self, name: str, look: Callable[[], tuple[T, str]], *needed: object) -> T | None:
        """What `look` finds; None where it raises ValueError or something `needed` is None."""
        if any(value is None for value in needed):
            self.made.append(Check(name, "left out", "It needs something that is not there."))
            return None
        try:
            found, says = look()
        except ValueError as error:
            text = describe(error) if isinstance(error, ValidationError) else str(error)
            self.made.append(Check(name, "wrong", " ".join(text.split())))
            return None
        self.made.append(Check(name, "ok", says))
        return found


def check_recipe(recipe: Recipe, train: TrainConfig, plan_of: PlanOf, rows: int = 256) -> Checked:
    """Look at all that training needs, and encode a sample of so many rows (0: all).

    `train` is the recipe's section with absolute folders; `plan_of` makes the order of the rows.
    """
    checks = _Checks()
    manifest = checks.run("shards", lambda: _shards(recipe.data.shards))
    some = checks.run("rows", lambda: _rows(manifest), manifest)
    checks.run("plan", lambda: _plan(plan_of), some)
    folder = checks.run("model", lambda: _model(recipe))
    made = checks.run("groups", lambda: _groups(recipe, train, str(folder)), folder)
    checks.run("tokenizer", lambda: _tokenizer(recipe, str(folder)), folder)
    checks.run("weights", lambda: _weights(recipe, train, Path(str(folder))), folder)
    checks.run("length", lambda: _length(recipe, str(folder)), folder)
    checks.run("packing", lambda: _packing(recipe, train, str(folder)), folder)
    checks.run("zero", lambda: _zero(recipe, train))
    checks.run("processes", lambda: _processes(train))
    for name, shards, split in _held_out(recipe, train):
        held = checks.run(name, lambda s=shards, of=split: _held_rows(s, of))  # type: ignore[misc]
        checks.run(
            f"{name}, apart",
            lambda s=shards, of=split: _apart(recipe.data.shards, s, of),  # type: ignore[misc]
            some,
            held,
        )
    sample = checks.run(
        "encoding", lambda: _encoding(recipe, train, str(folder), rows), some, folder, made
    )
    return Checked(tuple(checks.made), sample)


def _shards(folder: Place) -> tuple[Manifest, str]:
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        try:
            with open_parquet(folder / shard.file) as file:
                found = file.metadata.num_rows
        except (OSError, pa.ArrowInvalid):
            raise ValueError(f"The shard {folder / shard.file} is no parquet file.") from None
        if found != shard.rows:
            raise ValueError(
                f"The shard {folder / shard.file} has {found} rows, the manifest says {shard.rows}."
            )
    size = sum(shard.bytes for shard in manifest.shards) / 2**20
    return manifest, f"{len(manifest.shards)} files, {manifest.rows:,} rows, {size:,.1f} MiB."


def _rows(manifest: Manifest | None) -> tuple[int, str]:
    assert manifest is not None
    count = manifest.splits.get(TRAIN_SPLIT, 0)
    if not count:
        raise ValueError(
            f"No row is of the split {TRAIN_SPLIT}; the splits are {', '.join(manifest.splits)}."
        )
    return count, f"{count:,} rows of the split {TRAIN_SPLIT}."


def _plan(plan_of: PlanOf) -> tuple[Plan, str]:
    plan = plan_of()
    return plan, (
        f"{plan.total_steps:,} steps of {plan.global_batch_size} rows, {plan.micro_batch_size} at "
        f"a time on each of {plan.world_size} ranks; {plan.unread} rows are left over."
    )


def _model(recipe: Recipe) -> tuple[str | None, str]:
    model = recipe.model
    if model.tiny_layers is not None and not (is_url(model.path) or Path(model.path).exists()):
        return None, f"None at {model.path} yet: training will build a tiny one."
    folder = local_folder(model.path)
    family = family_of(folder, model.family)
    return folder, f"A {family.name} model in {folder}."


def _groups(recipe: Recipe, train: TrainConfig, folder: str) -> tuple[Outline, str]:
    family, config = family_of(folder), AutoConfig.from_pretrained(folder)
    wanted = train.lora.groups if train.lora else train.trainable
    check_groups(family, config, wanted or ())
    made = outline(folder, recipe.model, train)
    trained, total = (sum(made.count(trained=which).values()) for which in (True, None))
    groups = ", ".join(group for group, count in made.count(trained=True).items() if count)
    return made, f"{trained:,} of {total:,} parameters are trained: {groups}."


def _tokenizer(recipe: Recipe, folder: str) -> tuple[RowEncoder, str]:
    encoder = family_of(folder).encoder(folder, recipe.data.max_length)
    try:
        tokenizer = encoder.tokenizer
        image = tokenizer.convert_tokens_to_ids(encoder.image_token)
        asked = encoder.render([Message("user", "a")], 1, answer_next=True)
        mean, _ = encoder.normalisation
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ValueError(f"{folder} has no usable processor: {error}") from None
    if tokenizer.pad_token_id is None:
        raise ValueError(f"The tokenizer in {folder} has no padding token.")
    if image in (None, tokenizer.unk_token_id) or encoder.image_token not in asked:
        raise ValueError(
            f"The tokenizer or the chat template in {folder} does not know {encoder.image_token}."
        )
    return encoder, f"{len(tokenizer):,} tokens, a chat template, {len(mean)} image channels."


def _weights(recipe: Recipe, train: TrainConfig, folder: Path) -> tuple[int, str]:
    """Files, names and shapes, as transformers would load them, from the headers alone."""
    files = _weight_files(folder)
    shapes: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    for file in sorted(set(files.values()) or {_SINGLE}):
        try:
            with safe_open(folder / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118, it is no dict
                    shape = opened.get_slice(name).get_shape()
                    shapes[name] = torch.empty(shape, device="meta")
                    where[name] = file
        except FileNotFoundError:
            raise ValueError(f"The weights file {folder / file} is missing.") from None
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The weights file {folder / file} is damaged: {error}.") from None
    if absent := [name for name, file in files.items() if where.get(name) != file]:
        raise ValueError(f"The weights files in {folder} lack {_few(absent)}.")
    bare = train.model_copy(update={"lora": None, "trainable": None})
    made = outline(str(folder), recipe.model, bare)
    check_loading(str(folder), _as_loaded(made, shapes))
    size = sum(file.stat().st_size for file in (folder / f for f in set(where.values()))) / 2**30
    return len(shapes), f"{len(shapes)} tensors, {size:,.2f} GiB, and the model misses none."


def _weight_files(folder: Path) -> dict[str, str]:
    """The file that each tensor is in, by the index; empty where there is a single file."""
    index = folder / _INDEX
    if not index.exists():
        return {}
    try:
        files = json.loads(index.read_text())["weight_map"]
        return {str(name): str(file) for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of weights.") from None


def _as_loaded(made: Outline, shapes: dict[str, torch.Tensor]) -> dict[str, object]:
    """What `from_pretrained` says of these tensors: their names go through its own renaming."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it prints a table of what it reports
    try:
        _, report = type(made.model).from_pretrained(
            None,
            config=made.config,
            state_dict=shapes,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(level)
    return {kind: sorted(map(str, found))[:_NAMED] for kind, found in report.items() if found}


def _length(recipe: Recipe, folder: str) -> tuple[int, str]:
    text = AutoConfig.from_pretrained(folder).text_config
    most, asked = int(text.max_position_embeddings), recipe.data.max_length
    if asked > most:
        raise ValueError(f"data.max_length is {asked}, and the model has {most} positions.")
    return most, f"Rows of {asked} tokens, of {most} that the model can place."


def _packing(recipe: Recipe, train: TrainConfig, folder: str) -> tuple[bool, str]:
    check_packing(family_of(folder), train)
    return True, "Rows are packed." if train.packing else "Rows are padded, not packed."


def _zero(recipe: Recipe, train: TrainConfig) -> tuple[Any, str]:
    zero = zero_config(recipe.model, train)
    host = {"none": "nothing", "optimizer": "the optimiser's state", "all": "weights and states"}
    return zero, f"Stage {train.zero_stage}, {host[train.offload]} in host memory."


def _processes(train: TrainConfig) -> tuple[float, str]:
    ranks = train.num_workers * train.cpus_per_worker
    gpus = f" and {train.num_workers} GPUs" if train.use_gpu else ""
    return ranks, (
        f"The cluster needs {ranks:g} CPUs{gpus} for {train.num_workers} ranks, and half a CPU or "
        f"more for encoders; this machine has {os.cpu_count()} CPUs."
    )


def _held_out(recipe: Recipe, train: TrainConfig) -> Iterator[tuple[str, Place, str | None]]:
    """Name, folder and split (None: any) of the rows that must not be trained on."""
    if train.evaluation is not None and train.evaluation.shards is not None:
        yield "held-out rows", train.evaluation.shards, train.evaluation.split
    if recipe.evaluation is not None:
        yield "evaluation", recipe.evaluation.shards, None


def _held_rows(shards: Place, split: str | None) -> tuple[int, str]:
    manifest = read_manifest(shards)
    count = manifest.rows if split is None else manifest.splits.get(split, 0)
    if not count:
        raise ValueError(f"{shards} has no rows of the split {split}.")
    return count, f"{count:,} rows{f' of the split {split}' if split else ''} in {shards}."


def _apart(training: Place, held_out: Place, split: str | None) -> tuple[int, str]:
    """No id is in both, nor an image by its source and path. The images' bytes are not read."""
    (ids, images), (trained, seen) = _marks(held_out, split), _marks(training, TRAIN_SPLIT)
    if both := ids & trained:
        raise ValueError(f"{len(both)} rows of {held_out} are trained on too: {_few(both)}.")
    if both := images & seen:
        raise ValueError(f"{len(both)} images of {held_out} are trained on too: {_few(both)}.")
    return len(ids), f"None of {len(ids):,} ids and {len(images):,} image paths is trained on."


def _marks(shards: Place, split: str | None) -> tuple[set[str], set[str]]:
    ids: set[str] = set()
    images: set[str] = set()
    for shard in read_manifest(shards).shards:
        with open_parquet(shards / shard.file) as file:
            table = file.read(_COLUMNS)
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        ids.update(table["id"].to_pylist())
        pairs = zip(table["source"].to_pylist(), table["images"].to_pylist(), strict=True)
        images.update(f"{s}: {i['path']}" for s, row in pairs for i in row or () if i["path"])
    return ids, images


def _encoding(recipe: Recipe, train: TrainConfig, folder: str, rows: int) -> tuple[Sample, str]:
    sample = Sampler(recipe, train, folder, family_of(folder)).draw(rows)
    looked = len(sample.lengths) + len(sample.refused)
    says = f"{looked:,} of {sample.of:,} rows encoded, {len(sample.refused)} refused."
    return sample, says


def _few(names: Any) -> str:
    """The first names, and how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more
