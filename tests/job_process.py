"""A job's driver in a process of its own, with its output in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# What the workers of a test's own cluster find: the repository, and what is served in tests.
CODE = (ROOT / "platform", ROOT, TESTS / "serve", TESTS / "evaluation")
_TOLD = 4000  # characters of a failed job's output


def start_job(log: Path, module: str, *arguments: object, **env: str) -> subprocess.Popen[bytes]:
    """`python -m module ...` with `env` besides this process's own, and no cluster unless
    `RAY_ADDRESS` is among it."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    inherited |= {
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "COLUMNS": "200",
    }
    inherited.pop("WANDB_API_KEY", None)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=inherited | env,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def end_of(log: Path) -> str:
    """The last that a job wrote, for whoever reads of its failure."""
    return log.read_text()[-_TOLD:]
