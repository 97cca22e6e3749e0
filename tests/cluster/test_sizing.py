"""Workers follow from the recipe: as many as it takes, and no more than there are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tried import kubernetes, recipe

from stagebeam.cluster.config import Storage
from stagebeam.cluster.demands import check_paths
from stagebeam.cluster.sizing import (
    ENCODER_CPUS,
    ENCODERS_A_RANK,
    Group,
    Machines,
    Work,
    groups,
    machines_with_gpus,
    standing_groups,
)

CLUSTER = kubernetes()
MACHINES = Machines(CLUSTER.cpu, CLUSTER.gpu)


def trains(**train: Any) -> tuple[Group, ...]:
    settings = {"output_dir": "/data/train", "num_workers": 8, **train}
    return groups("train", recipe(train=settings), MACHINES)


def serves(generator: dict[str, Any], judge: dict[str, Any] | None = None) -> dict[str, Group]:
    other = {"model": "m", "scaling": {"num_gpus": 1}}
    serve = {"generator": {"model": "m", **generator}, "judge": judge or other}
    return {g.name: g for g in groups("serve", recipe(serve=serve), MACHINES)}


@pytest.mark.parametrize(
    ("ranks", "workers", "gpus", "cpus"),
    [(1, 1, 1, 8), (4, 1, 4, 32), (8, 1, 8, 64), (12, 2, 6, 48), (16, 2, 8, 64)],
)
def test_ranks_are_dealt_evenly_over_as_few_machines_as_hold_them(
    ranks: int, workers: int, gpus: int, cpus: int
) -> None:
    (group,) = trains(num_workers=ranks, global_batch_size=ranks)
    assert (group.least, group.most, group.gpus, group.cpus) == (workers, workers, gpus, cpus)
    assert group.together == (workers > 1)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"num_workers": 13}, "train.num_workers 13 does not divide over 2 machines of 8 GPUs"),
        ({"num_workers": 24}, "takes 3 machines of 8 GPUs, and the cluster has 2"),
        ({"cpus_per_worker": 9}, "need more than the 64 cores of a worker with 8 GPUs"),
        ({"use_gpu": False, "cpus_per_worker": 9}, "is more than the 8 cores of a worker"),
        ({"use_gpu": False, "num_workers": 64}, "workers without GPUs, and the cluster has 4"),
    ],
)
def test_ranks_that_fit_nowhere_are_one_sentence(train: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        trains(global_batch_size=train.get("num_workers", 8), **train)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_encoders_and_the_driver_have_room_beside_the_ranks() -> None:
    """Eight ranks of 7 cores leave 8 of 64; the driver and 16 encoders take 9."""
    ranks, beside = trains(cpus_per_worker=7)
    assert (ranks.name, beside.name, beside.least, beside.most) == ("train", "cpu", 1, 1)
    (alone,) = trains(cpus_per_worker=6)
    assert alone.name == "train"


def test_a_driver_is_not_divided_over_what_is_left_on_several_workers() -> None:
    """Half a core is left on each of two workers: enough in sum, and no room for a whole one."""
    settings = {"num_workers": 16, "cpus_per_worker": 7.9375, "encoders": 1}
    ranks, beside = trains(global_batch_size=16, **settings)
    assert (ranks.most, ranks.cpus, beside.name, beside.most) == (2, 64, "cpu", 1)


@given(
    ranks=st.integers(1, 16),
    cores=st.floats(0.5, 12),
    encoders=st.none() | st.integers(1, 40),
    use_gpu=st.booleans(),
)
def test_whatever_is_accepted_has_room_for_every_process(
    ranks: int, cores: float, encoders: int | None, use_gpu: bool
) -> None:
    settings = {"num_workers": ranks, "cpus_per_worker": cores, "encoders": encoders}
    try:
        found = trains(global_batch_size=ranks, use_gpu=use_gpu, **settings)
    except ValueError as refusal:
        assert str(refusal).endswith(".") and "\n" not in str(refusal)
        return
    assert all(group.least == group.most for group in found)
    assert sum(group.gpus * group.most for group in found) == (ranks if use_gpu else 0)
    needed = ranks * cores + 1 + 0.5 * (encoders or 2 * ranks)
    assert sum(group.cpus * group.most for group in found) >= needed - 1e-3


def test_ranks_without_gpus_share_workers_with_their_encoders() -> None:
    (group,) = trains(use_gpu=False, num_workers=4, cpus_per_worker=2, global_batch_size=4)
    assert (group.name, group.least, group.most) == ("cpu", 2, 2)  # 8 + 1 + 8 * 0.5 cores


def test_encoders_are_counted_as_the_stream_asks_for_them() -> None:
    from stagebeam.data import stream

    assert (stream._ENCODER_CPUS, stream._ENCODERS_A_RANK) == (ENCODER_CPUS, ENCODERS_A_RANK)


def test_a_replica_has_a_worker_with_its_gpus() -> None:
    vllm = {"engine": "vllm", "tensor_parallel": 4, "scaling": {"max_replicas": 3}}
    found = serves(vllm)
    assert found["generator"] == Group("generator", 1, 3, cpus=32, memory_gib=256, gpus=4)
    assert found["judge"] == Group("judge", 1, 1, cpus=8, memory_gib=64, gpus=1)
    assert (found["cpu"].least, found["cpu"].most) == (1, 1)


def test_replicas_that_share_a_gpu_share_a_worker() -> None:
    found = serves({"scaling": {"num_gpus": 0.25, "min_replicas": 2, "max_replicas": 9}})
    assert (found["generator"].least, found["generator"].most) == (1, 3)


def test_engines_without_gpus_go_to_workers_without() -> None:
    """Six cores each: two do not share the eight of a worker."""
    scaling = {"num_cpus": 6, "max_replicas": 2}
    found = serves({"scaling": scaling}, {"model": "m", "scaling": scaling})
    assert set(found) == {"cpu"}
    assert (found["cpu"].least, found["cpu"].most) == (2, 4)


def test_a_judge_on_the_generator_has_no_worker_of_its_own() -> None:
    scaling = {"num_gpus": 1}
    found = serves({"scaling": scaling}, {"model": "m", "on_generator": True, "scaling": scaling})
    assert set(found) == {"generator", "cpu"}


@pytest.mark.parametrize(
    ("generator", "says"),
    [
        ({"scaling": {"num_gpus": 16}}, "serve.generator takes 16 GPUs a replica"),
        ({"scaling": {"num_gpus": 1.5}}, "Ray wants whole ones"),
        ({"scaling": {"num_gpus": 1, "num_cpus": 9}}, "is more than the cores of a worker"),
        ({"scaling": {"num_cpus": 9}}, "num_cpus 9 is more than the 8 cores of a worker"),
        (
            {"scaling": {"num_gpus": 4, "max_replicas": 4}},
            "takes 3 machines of 8 GPUs, and the cluster has 2",
        ),
    ],
)
def test_replicas_that_fit_nowhere_are_one_sentence(generator: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        serves(generator)


def test_machines_hold_what_has_room_on_them() -> None:
    def of(*gpus: int) -> int:
        return machines_with_gpus([Group(f"{n}", 0, 1, 1, 1, n) for n in gpus], 8)

    assert (of(8), of(4, 4), of(4, 5), of(1, 6, 1), of(5, 5, 3, 3)) == (1, 1, 2, 1, 2)


@pytest.mark.parametrize(
    ("work", "section"),
    [("annotate", "annotate"), ("train", "train"), ("evaluate", "evaluation"), ("serve", "serve")],
)
def test_work_without_its_section_is_one_sentence(work: Work, section: str) -> None:
    with pytest.raises(ValueError, match=rf"^The recipe 'tried' has no {section} section\.$"):
        groups(work, recipe(**{section: None}), MACHINES)


def test_a_cluster_without_gpus_trains_nothing_on_them() -> None:
    with pytest.raises(ValueError, match=r"no machines with GPUs for train\.num_workers 8\.$"):
        groups("train", recipe(), Machines(CLUSTER.cpu, None))


def test_a_standing_cluster_has_room_for_each_kind_of_work_and_idles_empty() -> None:
    found = {g.name: g for g in standing_groups(recipe(), MACHINES)}
    assert set(found) == {"cpu", "train", "generator", "judge"}
    assert all(group.least == 0 for group in found.values())
    assert (found["cpu"].most, found["train"].most, found["generator"].most) == (4, 1, 2)


def test_paths_that_one_node_alone_has_are_named() -> None:
    """Hub names and a server's names for its models are no paths."""
    server = {"engine": "openai", "model": "/any", "server": {"base_url": "http://x/v1"}}
    engine = {"model": "runs/a/model", "scaling": {"num_gpus": 1}}
    local = recipe(
        model={"path": "org/name"},
        data={"shards": "runs/shards"},
        serve={"generator": engine, "judge": {**server, "kind": "remote"}},
    )
    with pytest.raises(ValueError, match=r"under /data, .* do not: data\.shards runs/shards\.$"):
        check_paths("train", local, CLUSTER.storage)
    with pytest.raises(ValueError, match=r"do not: serve\.generator\.model runs/a/model\.$"):
        check_paths("serve", local, CLUSTER.storage)
    check_paths("train", recipe(), CLUSTER.storage)


def test_urls_that_the_cluster_does_not_name_are_told_like_paths() -> None:
    storage = Storage(urls=("s3://bucket/runs",))
    train = {"output_dir": "s3://bucket/runs/a", "num_workers": 1, "global_batch_size": 1}
    model = {"path": "org/name"}
    held = recipe(model=model, data={"shards": "s3://bucket/runs/shards"}, train=train)
    check_paths("train", held, storage)
    other = recipe(model=model, data={"shards": "s3://other/shards"}, train=train)
    with pytest.raises(ValueError, match=r"do not: data\.shards s3://other/shards\.$"):
        check_paths("train", other, storage)
