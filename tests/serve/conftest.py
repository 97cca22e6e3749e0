"""A Ray cluster for the modules that serve."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The scripted engines are imported by name here and in the replicas.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from own_cluster import own_cluster

    with own_cluster():
        yield
