"""Starting a program once for each rank, as torchrun would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist


def leave() -> NoReturn:
    """End a rank once all are done, without the interpreter's own end: threads of gloo and autograd
    have been seen to abort it on a busy machine."""
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


TIME_LIMIT = 240  # seconds; a rank that waits for parameters the other never gathers hangs


def launch(program: str, folder: Path, run: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """Run `python PROGRAM FOLDER` for every rank to its end; returns what each wrote.

    The program finds `run` in FOLDER/run.json, and writes FOLDER/rank-N.json.
    """
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # the extension that DeepSpeed may have to build needs ninja, which lies beside Python
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
    }
    logs = [(folder / f"rank-{rank}.log").open("w+") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for rank, log in zip(ranks, logs, strict=True):
            code = rank.wait(TIME_LIMIT)
            log.seek(0)
            assert code == 0, log.read()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for log in logs:
            log.close()
    left = list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*"))
    assert not left, f"memory that outlives the ranks: {left}"
    return [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(world)]
