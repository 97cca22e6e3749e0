"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

# Bytes that are written again and again: page faults show whether they are the same ones.
_PROGRAM = """
import resource, sys
import numpy as np
from stagebeam.data.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
kept = [np.ones(1 << 20) for _ in range(3)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    a = np.ones(20 << 20, np.uint8); del a
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str) -> int:
    command = [sys.executable, "-c", _PROGRAM, argument]
    environment = {"PYTHONPATH": ":".join(sys.path), "MALLOC_TRIM_THRESHOLD_": "131072"}
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(out.stdout)


def test_large_arrays_are_made_of_memory_that_was_freed() -> None:
    assert faults("leave") > 10 * faults("keep")
