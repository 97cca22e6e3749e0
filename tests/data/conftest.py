"""Small examples and a Ray cluster for the data room's tests."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from PIL import Image as PilImage

from stagebeam.data.writing import write_shards
from stagebeam.recipe import DataConfig
from stagebeam.records import Example, Image, Message
from stagebeam.stages import STAGES, render


def png(width: int = 4, height: int = 3, colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (width, height), (colour % 256, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


STAGED = render({stage: f"{stage.value.lower()} text" for stage in STAGES})


def example(number: int = 0, **changes: object) -> Example:
    made = Example(
        id=f"row-{number:03d}",
        images=(Image(png(colour=number), f"{number}.png"),),
        messages=(Message("user", f"Question {number}?"), Message("assistant", STAGED)),
        source="small/even" if number % 2 == 0 else "small/odd",
        answer=str(number),
        category="number",
        choices=("1", "2"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def make_example() -> Callable[..., Example]:
    return example


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture(scope="session")
def rows() -> list[Example]:
    return [example(number) for number in range(46)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, rows: list[Example]) -> Path:
    """The rows in three files."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(rows, folder, DataConfig(shards=folder, rows_per_shard=16))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = Path(__file__).resolve().parents[2]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2 << 30,
        runtime_env={"env_vars": {"PYTHONPATH": f"{root / 'platform'}:{root}"}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
