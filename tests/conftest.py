"""What every test shares."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from stagebeam.data.sources.scenes import draw
from stagebeam.records import Example
from stagebeam.source_config import ScenesSource

sys.path.append(str(Path(__file__).parent))

if TYPE_CHECKING:
    from stagebeam.models.load import Loaded
    from stagebeam.storage import RemotePath

# Ray would otherwise turn token authentication on or off by what it finds on the machine.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# Speed depends on what else the machine does; whether a test passes must not.
settings.register_profile("stagebeam", deadline=None)
settings.load_profile("stagebeam")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_unconfigure() -> None:
    """End what would still run Python while the interpreter is taken down: daemon threads of Ray
    Serve's router and of W&B. A run in which every test had passed ended with a segmentation fault
    there once."""
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()
    router = sys.modules.get("ray.serve._private.router")
    loop = router.SingletonThreadRouter._asyncio_loop if router is not None else None
    if loop is not None:
        loop.call_soon_threadsafe(loop.stop)
        for thread in threading.enumerate():
            if "_run_router_event_loop" in thread.name:
                thread.join(10)


@pytest.fixture(scope="session")
def scenes() -> list[Example]:
    """Drawn examples of every kind."""
    return list(draw(ScenesSource(rows=300)))


@pytest.fixture(scope="session")
def tiny_folder(scenes: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny model that has the words of `scenes` and of judging them. Not to be
    written to."""
    # imported here: most tests need neither torch nor transformers
    from stagebeam.inference.wording import wording
    from stagebeam.models.tiny.build import build_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny(folder, [*wording(), *(m.text for e in scenes for m in e.messages)])
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> Loaded:
    """The model of `tiny_folder`. Untrained: it writes noise, other noise for every prompt. Not
    to be trained."""
    from stagebeam.models.load import load

    return load(str(tiny_folder), "cpu")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an S3 server."""
    # imported here: most tests need no server
    from object_store import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(s3: str) -> Iterator[RemotePath]:
    """An empty bucket, to which the environment leads this process and those that it starts."""
    from object_store import new_bucket

    with new_bucket(s3) as made:
        yield made
