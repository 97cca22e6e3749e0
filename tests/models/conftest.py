"""The encoder of the shared tiny folder."""

from __future__ import annotations

import pytest

from stagebeam.models.families.mllama import MllamaEncoder
from stagebeam.models.load import Loaded


@pytest.fixture(scope="session")
def encoder(loaded: Loaded) -> MllamaEncoder:
    return loaded.encoder
