"""A Ray cluster for the modules that serve."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
WORKER_PATH = [str(ROOT / "platform"), str(ROOT), str(Path(__file__).parent)]

# The scripted engines are imported by name here and in the replicas.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    env = {"PYTHONPATH": os.pathsep.join(WORKER_PATH), "OMP_NUM_THREADS": "1"}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        runtime_env={"env_vars": env},
    )
    yield
    ray.shutdown()
