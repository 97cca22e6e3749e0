"""How many workers of which shape a recipe takes, for each thing that it can do.

Everything is derived: ranks from `train`, replicas and their GPUs from `serve`. The cluster file
says what one machine has and how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from stagebeam.recipe import EngineConfig, Recipe, Scaling, ServeConfig
from stagebeam.train_config import TrainConfig

Work = Literal["prepare", "annotate", "train", "evaluate", "serve"]
WORK: tuple[Work, ...] = get_args(Work)

# As the stream asks for them (`data/stream.py`), where the recipe does not say.
ENCODER_CPUS, ENCODERS_A_RANK = 0.5, 2


class Shape(Protocol):
    """What one machine has."""

    @property
    def cpus(self) -> int: ...
    @property
    def memory_gib(self) -> int: ...
    @property
    def max_nodes(self) -> int: ...


class GpuShape(Shape, Protocol):
    """What one machine with GPUs has."""

    @property
    def gpus(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Workers of one shape, each on a machine or on a part of one."""

    name: str
    least: int  # workers while idle
    most: int  # workers under load
    cpus: int  # of one worker
    memory_gib: int
    gpus: int = 0
    together: bool = False  # whether they work on one step, over the network


@dataclass(frozen=True, slots=True)
class Machines:
    """What there is to size for: machines without GPUs, with GPUs, and what a driver takes."""

    cpu: Shape
    gpu: GpuShape | None
    driver_cpus: int = 1


def groups(work: Work, recipe: Recipe, machines: Machines) -> tuple[Group, ...]:
    """Workers that a recipe needs for this work; the head is not among them.

    Raises ValueError where the recipe has no such section, or asks for what no machine has.
    """
    match work:
        case "prepare":
            found = [_cpu(machines, 1, machines.cpu.max_nodes)]
        case "annotate":
            _section(recipe, "annotate")
            found = [_cpu(machines, 1, 1)]
        case "train":
            found = list(_training(recipe, machines))
        case "evaluate":
            _section(recipe, "evaluation")
            found = list(_serving(recipe, machines))
        case "serve":
            found = list(_serving(recipe, machines))
    _check_counts(recipe, found, machines)
    return tuple(found)


def possible(recipe: Recipe) -> tuple[Work, ...]:
    """What a recipe has the sections for."""
    has: Mapping[Work, bool] = {
        "prepare": bool(recipe.data.sources),
        "annotate": recipe.annotate is not None,
        "train": recipe.train is not None,
        "evaluate": recipe.evaluation is not None and recipe.serve is not None,
        "serve": recipe.serve is not None,
    }
    return tuple(work for work in WORK if has[work])


def standing_groups(recipe: Recipe, machines: Machines) -> tuple[Group, ...]:
    """Workers of a cluster that takes all work of a recipe, one after the other; none while idle.

    Raises ValueError as `groups` does, and where the recipe has nothing to do.
    """
    largest: dict[str, Group] = {}
    for work in possible(recipe):
        for group in groups(work, recipe, machines):
            before = largest.get(group.name, group)
            largest[group.name] = replace(group, least=0, most=max(group.most, before.most))
    if not largest:
        raise ValueError(f"The recipe '{recipe.name}' has nothing to run on a cluster.")
    return tuple(largest.values())


def _cpu(machines: Machines, least: int, most: int) -> Group:
    shape = machines.cpu
    return Group("cpu", least, most, shape.cpus, shape.memory_gib)


def _training(recipe: Recipe, machines: Machines) -> Iterable[Group]:
    """All ranks at once or none, so `least` is `most`; and workers for the driver and the encoders
    where the ranks' workers have no room for them."""
    train = recipe.train
    if train is None:
        raise ValueError(f"The recipe '{recipe.name}' has no train section.")
    encoders = train.encoders or ENCODERS_A_RANK * train.num_workers
    beside = [float(machines.driver_cpus), *[ENCODER_CPUS] * encoders]
    cores = machines.cpu.cpus
    if train.use_gpu:
        ranks = _gpu_ranks(train, machines)
        yield ranks
        spare = ranks.cpus - ranks.gpus * train.cpus_per_worker
        more = len(_filled(beside, cores, [spare] * ranks.most)) - ranks.most
        if more:
            yield _cpu(machines, more, more)
        return
    if train.cpus_per_worker > cores:
        raise ValueError(
            f"train.cpus_per_worker {train.cpus_per_worker:g} is more than the {cores} cores of a "
            "worker."
        )
    count = len(_filled([*[train.cpus_per_worker] * train.num_workers, *beside], cores))
    yield _cpu(machines, count, count)


def _gpu_ranks(train: TrainConfig, machines: Machines) -> Group:
    """Workers with a GPU for each rank, alike in size, on as few machines as can be."""
    shape = _gpus(machines, f"train.num_workers {train.num_workers}")
    count = math.ceil(train.num_workers / shape.gpus)
    ranks, rest = divmod(train.num_workers, count)
    if rest:
        raise ValueError(
            f"train.num_workers {train.num_workers} does not divide over {count} machines of "
            f"{shape.gpus} GPUs."
        )
    group = replace(_share(shape, "train", ranks, count, count), together=count > 1)
    if ranks * train.cpus_per_worker > group.cpus:
        raise ValueError(
            f"{ranks} ranks of train.cpus_per_worker {train.cpus_per_worker:g} need more than the "
            f"{group.cpus} cores of a worker with {ranks} GPUs."
        )
    return group


def _serving(recipe: Recipe, machines: Machines) -> Iterable[Group]:
    """A group for each engine on GPUs, so that pods come and go with its replicas; everything else
    on workers without GPUs."""
    serve = recipe.serve
    if serve is None:
        raise ValueError(f"The recipe '{recipe.name}' has no serve section.")
    light: list[Scaling] = [serve.gateway, serve.searcher]
    for name, engine in engines(serve).items():
        if engine.gpus:
            yield _replicas(name, engine, machines)
        elif engine.scaling.num_cpus > machines.cpu.cpus:
            raise ValueError(
                f"serve.{name}.scaling.num_cpus {engine.scaling.num_cpus:g} is more than the "
                f"{machines.cpu.cpus} cores of a worker."
            )
        else:
            light.append(engine.scaling)
    # kept traces have a replica of their own beside several gateways
    traces = [serve.gateway.num_cpus] if serve.gateway.max_replicas > 1 else []
    least = traces + [s.num_cpus for s in light for _ in range(s.min_replicas)]
    most = traces + [s.num_cpus for s in light for _ in range(s.max_replicas)]
    cores = machines.cpu.cpus
    yield _cpu(machines, max(1, len(_filled(least, cores))), max(1, len(_filled(most, cores))))


def engines(serve: ServeConfig) -> dict[str, EngineConfig]:
    """Those with replicas of their own, by the names of their deployments."""
    alone = {} if serve.judge.on_generator else {"judge": serve.judge}
    return {"generator": serve.generator, **alone}


def _replicas(name: str, engine: EngineConfig, machines: Machines) -> Group:
    """A worker for each replica, or for as many as share a GPU."""
    gpus = max(1, math.ceil(engine.gpus))
    shape = _gpus(machines, f"serve.{name}, {gpus} a replica")
    if engine.gpus > 1 and engine.gpus != gpus:
        raise ValueError(
            f"serve.{name} takes {engine.gpus:g} GPUs a replica: Ray wants whole ones."
        )
    if gpus > shape.gpus:
        raise ValueError(
            f"serve.{name} takes {gpus} GPUs a replica, and a machine has {shape.gpus}."
        )
    together = max(1, int(1 / engine.gpus + 1e-6))
    scaling = engine.scaling
    least, most = (
        math.ceil(count / together) for count in (scaling.min_replicas, scaling.max_replicas)
    )
    group = _share(shape, name, gpus, least, most)
    if together * scaling.num_cpus > group.cpus:
        raise ValueError(
            f"serve.{name}.scaling.num_cpus {scaling.num_cpus:g} is more than the cores of a "
            f"worker with {gpus} GPUs, which are {group.cpus}."
        )
    return group


def _share(shape: GpuShape, name: str, gpus: int, least: int, most: int) -> Group:
    """Workers with so many of a machine's GPUs, and the same share of its cores and memory."""
    cpus, memory = (whole * gpus // shape.gpus for whole in (shape.cpus, shape.memory_gib))
    if not cpus or not memory:
        raise ValueError(f"A machine has too few cores or GiB for each of its {shape.gpus} GPUs.")
    return Group(name, least, most, cpus, memory, gpus)


def _gpus(machines: Machines, needed_by: str) -> GpuShape:
    if machines.gpu is None or not machines.gpu.gpus:
        raise ValueError(f"The cluster has no machines with GPUs for {needed_by}.")
    return machines.gpu


def _section(recipe: Recipe, name: str) -> None:
    if getattr(recipe, name) is None:
        raise ValueError(f"The recipe '{recipe.name}' has no {name} section.")


def machines_with_gpus(found: Iterable[Group], a_machine: int) -> int:
    """How many machines of so many GPUs hold these groups."""
    return len(_filled([g.gpus for g in found if g.gpus for _ in range(g.most)], a_machine))


def _filled(sizes: Iterable[float], room: float, free: Sequence[float] = ()) -> list[float]:
    """What is left of each place when all have one: the largest first, each in the first place that
    has room for it, else in a new one. `free` is what is left of places that are there."""
    left = list(free)
    for size in sorted(sizes, reverse=True):
        place = next((i for i, rest in enumerate(left) if rest >= size - 1e-6), None)
        if place is None:
            left.append(room - size)
        else:
            left[place] -= size
    return left


def _check_counts(recipe: Recipe, found: Iterable[Group], machines: Machines) -> None:
    found = tuple(found)
    if machines.gpu is not None and machines.gpu.gpus:
        needed = machines_with_gpus(found, machines.gpu.gpus)
        if needed > machines.gpu.max_nodes:
            raise ValueError(
                f"The recipe '{recipe.name}' takes {needed} machines of {machines.gpu.gpus} GPUs, "
                f"and the cluster has {machines.gpu.max_nodes}."
            )
    cpu = sum(group.most for group in found if not group.gpus)
    if cpu > machines.cpu.max_nodes:
        raise ValueError(
            f"The recipe '{recipe.name}' takes {cpu} workers without GPUs, and the cluster has "
            f"{machines.cpu.max_nodes}."
        )
