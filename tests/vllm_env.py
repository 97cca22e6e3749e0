"""vLLM for tests: it runs in an environment of its own, `.venv-vllm`, as a program with files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SECONDS = 400  # for one start of vLLM, 30 to 60 of them on an idle machine

MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 100),
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason="vLLM wants an environment of its own (3.4 GB): `make vllm-env` builds it",
    ),
]


def widen_heads(folder: Path) -> None:
    """Two heads of 32 in place of four of 16, for which vLLM's CPU attention has no kernel; the
    weights have the same shapes either way."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text = config["text_config"]
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    if "head_dim" in text:
        text["head_dim"] = 32
    if "mrope_section" in text["rope_parameters"]:
        text["rope_parameters"]["mrope_section"] = [4, 6, 6]
    file.write_text(json.dumps(config))


@contextmanager
def running(arguments: Sequence[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in vLLM's environment, which is gone with all that it started on exit."""
    variables = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "platform"),
        "VLLM_CACHE_ROOT": str(log.parent / "cache"),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(PYTHON), *map(str, arguments)],
            env=os.environ | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def in_vllm(program: Path, folder: Path, asked: Any, scratch: Path) -> Any:
    """What `program FOLDER REQUESTS ANSWERS` answers to `asked`."""
    requests, answered, log = (scratch / name for name in ("asked", "answered", "log"))
    requests.write_text(json.dumps(asked))
    with running([program, folder, requests, answered], log) as process:
        process.wait(SECONDS)
        assert process.returncode == 0, log.read_text()[-5000:]
    return json.loads(answered.read_text())
