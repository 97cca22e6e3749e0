"""The encoder of the shared tiny folder; what tests share lies beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.load import Loaded

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def encoder(loaded: Loaded) -> MllamaEncoder:
    return loaded.encoder
