"""The head is lost, and with it the cluster: jobs say so, and go on from storage on another one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from faulty_source import make_faulty
from job_process import CODE, end_of
from preparing import STRETCHES, made, marks, preparing, readings, to_its_end, write_recipe
from ray_nodes import RayCluster, ray_cluster
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_same_command_on_another_cluster_goes_on_where_a_lost_head_left_it(
    cluster: RayCluster, tmp_path: Path
) -> None:
    source = make_faulty(tmp_path / "source").source
    unbroken, broken = (write_recipe(tmp_path / name, source) for name in ("unbroken", "broken"))
    with ray_cluster(path=CODE) as first:
        first.add()
        with preparing(first, broken) as job:
            wait_until(lambda: len(marks(broken)) >= 4)
            first.lose(first.head)
            began = time.monotonic()
            status = job.wait(600)
            seconds = time.monotonic() - began
    said = end_of(broken.with_suffix(".log"))
    done = len(marks(broken))
    print(f"head: the job ended with status {status} after {seconds:.0f} s, {done} stretches done")
    assert status == 1
    assert "error: The head of the cluster is lost" in said
    with preparing(cluster, broken) as job:
        to_its_end(job, broken)
    assert len(readings(cluster)) == STRETCHES - done, "what was finished is read again"
    with preparing(cluster, unbroken) as job:
        to_its_end(job, unbroken)
    assert made(broken) == made(unbroken)
