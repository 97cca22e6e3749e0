"""Where a rank of a DeepSpeed engine keeps its share of the trainable parameters in float32.

Whatever the ZeRO stage, a rank holds at most one run of consecutive elements of a parameter, and
that run lies inside a tensor that the base optimiser (torch's AdamW) updates and keys its state
by. The layouts (DeepSpeed 0.19.8):

- stage 3 (`runtime/zero/stage3.py`): every parameter is cut into equal parts, one for each rank,
  the last ones padded; a rank's parts lie one behind the other in a flat tensor.
- stages 1 and 2 (`runtime/zero/stage_1_and_2.py`, `runtime/bf16_optimizer.py`): all parameters
  are laid out one behind the other and that is cut into equal parts, padded at the end;
  `param._hp_mapping` says which run of the parameter lies where in this rank's part.
- stage 0: every rank holds everything, in the parameters themselves or, under bf16, in copies of
  them (`runtime/fp16/unfused_optimizer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Piece:
    """The run of a trainable parameter's elements that this rank holds."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int  # of the run, among the parameter's elements in their order
    count: int
    updated: torch.Tensor  # what the optimiser updates; float32
    at: int  # where in `updated` the run begins

    @property
    def stop(self) -> int:
        return self.start + self.count

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The run [count] in `updated` or in one of its moments: a view."""
        return tensor.detach().view(-1).narrow(0, self.at, self.count)


def trainable(engine: Any) -> dict[str, Any]:
    """The parameters that are trained, by name, with what DeepSpeed has hung on them. It leaves
    empty ones alone."""
    named = engine.module.named_parameters()
    return {name: p for name, p in named if p.requires_grad and shape_of(p).numel()}


def shape_of(param: torch.nn.Parameter) -> torch.Size:
    """The whole parameter's; under ZeRO-3 its own shape is mostly [0]."""
    shape: torch.Size = getattr(param, "ds_shape", param.shape)
    return shape


def held(engine: Any) -> list[Piece]:
    """What this rank holds, and has to be given back when training goes on."""
    find = {0: _in_copies, 1: _in_fragments, 2: _in_fragments, 3: _in_partitions}
    return list(find[engine.zero_optimization_stage()](engine))


def owned(engine: Any) -> list[Piece]:
    """What this rank writes: of all ranks together, every element once."""
    pieces = held(engine)
    if engine.zero_optimization_stage() > 0:
        return pieces
    return [_share(piece) for piece in pieces]


def _share(piece: Piece) -> Piece:
    rank, world = dist.get_rank(), dist.get_world_size()
    first, end = (piece.count * r // world for r in (rank, rank + 1))
    return replace(piece, start=first, at=first, count=end - first)


def _in_copies(engine: Any) -> Iterator[Piece]:
    masters = dict(_copies(engine))
    for name, param in trainable(engine).items():
        updated = masters.get(param, param)
        yield Piece(name, tuple(param.shape), 0, param.numel(), updated, 0)


def _copies(engine: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Stage 0: the parameters with their float32 copies; nothing where they are float32."""
    if engine.bfloat16_enabled():
        wrapper = engine.optimizer
        for params, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            yield from zip(params, masters, strict=True)


def _in_fragments(engine: Any) -> Iterator[Piece]:
    groups = engine.basic_optimizer.param_groups
    for name, param in trainable(engine).items():
        found = param._hp_mapping
        if found is not None:
            of_param, of_part = found.lp_fragment_address, found.hp_fragment_address
            (updated,) = groups[found.param_group_index]["params"]
            yield Piece(
                name, tuple(param.shape), of_param.start, of_param.numel, updated, of_part.start
            )


def _in_partitions(engine: Any) -> Iterator[Piece]:
    zero = engine.optimizer
    for name, param in trainable(engine).items():
        group, at, count = zero.grad_position[zero.get_param_id(param)]
        start = count * dist.get_rank(param.ds_process_group)
        count = min(count, param.ds_numel - start)  # without the padding
        if count > 0:
            updated = zero.fp32_partitioned_groups_flat[group]
            yield Piece(name, tuple(param.ds_shape), start, count, updated, at)


def _all_updated(engine: Any) -> list[torch.Tensor]:
    """Every tensor that the optimiser updates, those with nothing but padding too."""
    if engine.zero_optimization_stage() == 3:  # lends them to the optimiser for a step only
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [p for group in engine.basic_optimizer.param_groups for p in group["params"]]


def moments(engine: Any, piece: Piece) -> dict[str, torch.Tensor]:
    """AdamW's moments of a piece, each [count]: views. There are none before the first step."""
    state = engine.basic_optimizer.state[piece.updated]
    return {key: piece.of(state[key]) for key in MOMENTS}


def optimizer_step(engine: Any) -> int:
    """How often AdamW has stepped, which its bias correction goes by."""
    states = engine.basic_optimizer.state
    steps = {int(states[updated]["step"]) for updated in _all_updated(engine)}
    assert len(steps) == 1, f"parameters that were stepped differently often: {steps}"
    return steps.pop()


def set_optimizer_step(engine: Any, step: int) -> None:
    """The opposite; in a fresh engine it makes AdamW's state, which otherwise the first step does.

    (torch/optim/adam.py, `_init_group`: the counter is a float32 on the CPU.)
    """
    for updated in _all_updated(engine):
        state = engine.basic_optimizer.state[updated]
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(updated)
        state["step"] = torch.tensor(float(step))


@torch.no_grad()
def refresh(engine: Any) -> None:
    """Copy the float32 weights to where the forward pass reads them. Every rank has to call it."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        params = trainable(engine)
        optimizer.checkpoint_event_prologue()  # what is gathered is out of date
        for piece in held(engine):
            partition = params[piece.name].ds_tensor.data
            partition.narrow(0, 0, piece.count).copy_(piece.of(piece.updated))
        optimizer.checkpoint_event_epilogue()  # gathers the small ones that stay gathered
    elif stage > 0:
        optimizer.update_lp_params()
    else:
        for param, master in _copies(engine):
            param.copy_(master)
