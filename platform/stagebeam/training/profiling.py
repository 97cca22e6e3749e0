"""A trace of some steps, for a browser (chrome://tracing, Perfetto)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from stagebeam.storage import Place, filled

_WAIT = 10  # steps until the first one that is recorded: caches fill and kernels are chosen


@contextmanager
def profiled(folder: Place | None, steps: int) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step. Writes `trace.json.gz` to `folder` once the
    steps after the tenth are recorded; does nothing without a folder."""
    if folder is None or not steps:
        yield lambda: None
        return

    def write(recorded: Any) -> None:
        with filled(folder) as local:
            recorded.export_chrome_trace(str(local / "trace.json.gz"))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=_WAIT - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=write,
        profile_memory=True,
    ) as recorder:
        yield recorder.step
