"""What a job says where the head of its cluster is lost."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FAILED = 1
_LOOK_EVERY_S = 2.0
_TIMEOUT_S = 5.0
# Ray ends a process that has not reached the head for so long, by a message of its own.
_RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_BEFORE_RAY_S = 5.0


@contextmanager
def watching_head(address: str) -> Iterator[None]:
    """While this is entered, a head that stays away ends this process with one sentence, shortly
    before Ray would. `address` is the GCS's, host:port.

    A head whose state is in Redis may come back: it is waited for as long as Ray does. An error
    that is raised while it is away is put down to that.
    """
    left = threading.Event()
    patience = float(os.environ.get(_RAYS_PATIENCE, 60)) - _BEFORE_RAY_S

    def watch() -> None:
        answered = time.monotonic()
        while not left.wait(_LOOK_EVERY_S):
            if _listens(address):
                answered = time.monotonic()
            elif time.monotonic() - answered > patience:
                _say(address)
                os._exit(FAILED)  # the main thread may wait for Ray, which waits for the head

    threading.Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    except Exception:
        if _listens(address):
            raise
        _say(address)
        raise SystemExit(FAILED) from None
    finally:
        left.set()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False


def _say(address: str) -> None:
    print(
        f"error: The head of the cluster at {address} is lost. What is finished lies on storage: "
        "the same command goes on with it on another cluster.",
        file=sys.stderr,
        flush=True,
    )
