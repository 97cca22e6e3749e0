"""Ending a process with everything that it has started, as a machine that goes down would."""

from __future__ import annotations

import contextlib
import signal
import time

import psutil

_PATIENCE_S = 30.0


def family(root: psutil.Process) -> list[psutil.Process]:
    """A process and all below it; nothing where it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_family(root: psutil.Process) -> None:
    """All are stopped before the first is killed, so that none sees another die and tidies up, or
    starts a new one."""
    stopped: list[psutil.Process] = []
    while fresh := [p for p in family(root) if p not in stopped]:
        for process in fresh:
            _signal(process, signal.SIGSTOP)
        stopped += fresh
    for process in stopped:
        _signal(process, signal.SIGKILL)
    limit = time.monotonic() + _PATIENCE_S
    while (alive := [p for p in stopped if _alive(p)]) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive, alive


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
