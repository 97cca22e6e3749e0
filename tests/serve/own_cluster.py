"""A Ray cluster of the test's own, whose workers find the sources and the scripted engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from jobs.cluster import SERVE_ENV

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKER_PATH = [str(ROOT / "platform"), str(ROOT), str(HERE)]


@contextmanager
def own_cluster(**options: Any) -> Iterator[None]:
    """Two CPUs; `options` are Ray's."""
    env = {"PYTHONPATH": os.pathsep.join(WORKER_PATH), "OMP_NUM_THREADS": "1", **SERVE_ENV}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        runtime_env={"env_vars": env},
        **options,
    )
    try:
        yield
    finally:
        ray.shutdown()
