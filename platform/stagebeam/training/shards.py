"""Training checkpoints: each rank writes its share; any number of ranks, at any stage, reads it.

A checkpoint is a folder with a file `rank-00000-of-00002.safetensors` for each rank. A file holds,
for every trainable parameter that the rank has a piece of, three flat float32 tensors:
`master/NAME`, `exp_avg/NAME` and `exp_avg_sq/NAME`. Its metadata has one key, `stagebeam`, a JSON
text (`Header`) that says where in its parameter a piece begins. Frozen parameters are not
written: they are those of the base model.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stagebeam.training.pieces import (
    MOMENTS,
    Piece,
    held,
    moments,
    optimizer_step,
    owned,
    refresh,
    set_optimizer_step,
    shape_of,
    trainable,
)

_KEY = "stagebeam"
_MASTER = "master"
_FILE = re.compile(r"rank-(\d+)-of-(\d+)\.safetensors")


class Extent(BaseModel):
    """Where a piece lies; how long it is, its tensors say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int
    shape: tuple[int, ...]


class Header(BaseModel):
    """What a rank's file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    step: int
    optimizer_step: int
    rank: int
    world_size: int
    pieces: dict[str, Extent]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies in host memory of what a rank writes; another thread may write them."""

    header: Header
    tensors: Mapping[str, torch.Tensor]

    def write(self, folder: Path) -> None:
        """Write this rank's file, which appears whole or not at all."""
        path = folder / file_name(self.header.rank, self.header.world_size)
        partial = path.with_name(f"{path.name}.partial")
        save_file(dict(self.tensors), partial, {_KEY: self.header.model_dump_json()})
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.rename(path)


def file_name(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def snapshot(engine: Any, step: int) -> Snapshot:
    """Copy this rank's share after optimiser step `step`. No files, no collectives."""
    pieces = owned(engine)
    tensors = {
        f"{kind}/{piece.name}": run.to("cpu", copy=True)
        for piece in pieces
        for kind, run in _runs(engine, piece).items()
    }
    header = Header(
        step=step,
        optimizer_step=optimizer_step(engine),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        pieces={piece.name: Extent(start=piece.start, shape=piece.shape) for piece in pieces},
    )
    return Snapshot(header, tensors)


def restore(engine: Any, folder: Path) -> int:
    """Give the engine the weights and moments of a checkpoint; returns its step.

    Called on every rank; each reads no more than what it holds. Raises ValueError, on all of them
    and before anything is changed, where on any of them the folder has no checkpoint, or a torn
    or incomplete one, or one of other parameters than are trained here.
    """
    with ExitStack() as stack:
        try:
            opened, wrong = _open(folder, stack), None
            opened.check({name: tuple(shape_of(p)) for name, p in trainable(engine).items()})
        except ValueError as error:
            wrong = str(error)
        everywhere: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, wrong)
        for sentence in filter(None, everywhere):
            raise ValueError(sentence)
        set_optimizer_step(engine, opened.header.optimizer_step)
        for piece in held(engine):
            opened.read(piece.name, piece.start, _runs(engine, piece))
    refresh(engine)
    return opened.header.step


def _runs(engine: Any, piece: Piece) -> dict[str, torch.Tensor]:
    """The three tensors of a piece, each [count]: views."""
    assert piece.updated.dtype == torch.float32
    return {_MASTER: piece.of(piece.updated), **moments(engine, piece)}


@dataclass(frozen=True, slots=True)
class _Stored:
    """A piece in a file."""

    start: int
    count: int
    shape: tuple[int, ...]
    file: Any


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """All ranks' files, open."""

    folder: Path
    header: Header  # the first rank's
    stored: Mapping[str, list[_Stored]]  # by parameter, in the order of its elements

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError unless it holds exactly these parameters, and all of each."""
        for name in sorted(shapes.keys() ^ self.stored.keys()):
            where = "trained but missing" if name in shapes else "there but not trained"
            raise ValueError(
                f"The checkpoint {self.folder} holds other parameters than are trained: "
                f"{name} is {where}."
            )
        for name, shape in shapes.items():
            reached = 0
            for piece in self.stored[name]:
                if piece.shape != shape:
                    raise ValueError(
                        f"The checkpoint {self.folder} holds {name} with shape "
                        f"{list(piece.shape)}; the model's is {list(shape)}."
                    )
                if piece.start == reached:
                    reached += piece.count
            if reached != prod(shape):
                raise ValueError(f"The checkpoint {self.folder} does not hold all of {name}.")

    def read(self, name: str, start: int, targets: Mapping[str, torch.Tensor]) -> None:
        """Fill the targets, each [count], with a parameter's elements from `start` on."""
        for piece in self.stored[name]:
            for kind, target in targets.items():
                first = max(start, piece.start)
                end = min(start + len(target), piece.start + piece.count)
                if first < end:
                    lazy = piece.file.get_slice(f"{kind}/{name}")
                    run = lazy[first - piece.start : end - piece.start]
                    target.narrow(0, first - start, end - first).copy_(run)


def _open(folder: Path, stack: ExitStack) -> _Checkpoint:
    """Open every rank's file, closed by `stack`. Raises ValueError where one cannot be used."""
    found = [m for path in sorted(folder.glob("*")) if (m := _FILE.fullmatch(path.name))]
    if not found:
        raise ValueError(f"There is no checkpoint in {folder}.")
    world_size = int(found[0][2])
    stored: dict[str, list[_Stored]] = defaultdict(list)
    headers = []
    for rank in range(world_size):
        path = folder / file_name(rank, world_size)
        if not path.exists():
            raise ValueError(f"The checkpoint {folder} is incomplete: {path.name} is missing.")
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            header = Header.model_validate_json((file.metadata() or {}).get(_KEY, ""))
            for name, extent in header.pieces.items():
                (count,) = {_length(file, kind, name) for kind in (_MASTER, *MOMENTS)}
                stored[name].append(_Stored(extent.start, count, extent.shape, file))
        except ValidationError:
            raise ValueError(f"{path} is not a checkpoint of a kind that is known here.") from None
        except (SafetensorError, OSError, ValueError):
            raise ValueError(f"The checkpoint file {path} is torn.") from None
        headers.append(header)
    for header in headers:
        if (header.step, header.world_size) != (headers[0].step, world_size):
            raise ValueError(f"The checkpoint {folder} mixes files of several checkpoints.")
    for pieces in stored.values():
        pieces.sort(key=lambda piece: piece.start)
    return _Checkpoint(folder, headers[0], stored)


def _length(file: Any, kind: str, name: str) -> int:
    length: int = file.get_slice(f"{kind}/{name}").get_shape()[0]
    return length
