"""A Ray session for a job: the cluster that it was submitted to, or a small local one."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.data import DataContext

from jobs.head_watch import watching_head

ROOT = Path(__file__).resolve().parents[1]
LOCAL_OBJECT_STORE = 1 << 30  # bytes; shards are streamed, never held
# A Unix socket's path has at most 107 bytes, and Ray's add 64 to the session folder's.
_LONGEST_FOLDER = 107 - 64
_PREFIX = "stagebeam-ray-"
# Serve kills a proxy that is not ready within five seconds and starts another; busy machines take
# longer.
SERVE_ENV = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster named by RAY_ADDRESS (`ray job submit` sets it), or start one here.

    A local cluster is stopped and its session folder removed at the end, unless the job failed:
    then its logs are left and their place is said. Where the head of another is lost, this process
    ends with a sentence.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS"):
        # Relative: every node unpacks the shipped folder somewhere else, and starts workers in it.
        shipped = {} if os.environ.get("PYTHONPATH") else {"PYTHONPATH": "platform"}
        ray.init(log_to_driver=False, runtime_env={"env_vars": shipped | SERVE_ENV})
        with watching_head(ray.get_runtime_context().gcs_address):
            try:
                yield
            finally:
                ray.shutdown()
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a bare init may switch it on
    folder = session_folder()
    failed = True
    try:
        ray.init(
            num_cpus=max(2, os.cpu_count() or 2),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=LOCAL_OBJECT_STORE,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", **SERVE_ENV}},
        )
        yield
        failed = False
    except ValueError:  # the user's mistake, not Ray's
        failed = False
        raise
    finally:
        ray.shutdown()
        if failed:
            print(f"The logs of Ray are kept in {folder}.", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def session_folder() -> str:
    """A new folder for Ray's session: in the place for temporary files, or where that path is too
    long for Ray's sockets, in /tmp."""
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return folder
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
