"""The head is lost, and with it the cluster: jobs say so, and go on from storage on another one."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from faulty_source import make_faulty
from job_process import CODE, end_of
from preparing import made, marks, preparing, readings, to_its_end, write_recipe
from ray_nodes import RayCluster, ray_cluster
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NODES = 2


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
    assert re.search(r"^error: The head of the cluster at \S+ is lost\. ", said, re.MULTILINE)
    tasks = [0]  # done by the new cluster after each job
    for recipe in (broken, unbroken):
        with preparing(cluster, recipe) as job:
            to_its_end(job, recipe)
        tasks.append(len(readings(cluster)))
    rest, all_ = (after - before for before, after in pairwise(tasks))
    assert rest == all_ - done, "what was finished was read again, or not all of the rest"
    assert made(broken) == made(unbroken)
