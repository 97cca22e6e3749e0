"""What every test shares."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

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
