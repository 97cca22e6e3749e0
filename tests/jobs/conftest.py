"""What the jobs' tests share; more of it lies in modules beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def console() -> Iterator[Console]:
    """One that nobody reads."""
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere)


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B stays offline."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
