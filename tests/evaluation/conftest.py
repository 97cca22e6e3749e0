"""The scripted world's module, and one report made of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import scripted_world

from stagebeam.evaluation.cases import Case
from stagebeam.evaluation.results import Results


@pytest.fixture(scope="session")
def report_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, list[Case]]:
    return scripted_world.build_report(tmp_path_factory.mktemp("answers"))
