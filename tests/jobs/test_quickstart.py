"""The whole path, small: every joint is the real one, only the budgets are tiny."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import yaml

from stagebeam.models.load import load
from stagebeam.search.trace import read_traces

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "jobs" / "recipes" / "quickstart.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "TMPDIR": str(recipe.parent / "t"),
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-m", "jobs.quickstart", str(recipe), *arguments],
        env=environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=800,
    )


@pytest.fixture(scope="module")
def recipe() -> Iterator[Path]:
    """The shipped recipe with small budgets. Its folder has a short name, so that Ray's session
    lies inside it and what is left behind shows."""
    with TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        (Path(folder) / "t").mkdir()
        yield _small_recipe(Path(folder))


def _small_recipe(folder: Path) -> Path:
    settings = yaml.safe_load(RECIPE.read_text().replace("runs/quickstart", str(folder / "run")))
    settings["data"]["sources"][0]["rows"] = 2560
    settings["data"]["sources"][1]["rows"] = 64
    settings["judge_training"].update(questions=32, steps=20)
    settings["evaluation"].update(rows=24, candidates=[2])
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def first_run(recipe: Path) -> subprocess.CompletedProcess[str]:
    return run(recipe)


def test_it_ends_well_and_leaves_no_process_behind(
    recipe: Path, first_run: subprocess.CompletedProcess[str]
) -> None:
    assert first_run.returncode == 0, first_run.stdout + first_run.stderr
    mark = str(recipe.parent)
    left = [p.info for p in psutil.process_iter(["cmdline"]) if mark in " ".join(_command(p))]
    assert left == []
    assert list((recipe.parent / "t").glob("stagebeam-ray-*")) == []


def _command(process: psutil.Process) -> list[str]:
    return process.info["cmdline"] or []


@pytest.mark.usefixtures("first_run")
def test_the_report_holds_what_other_programs_read(recipe: Path) -> None:
    folder = recipe.parent / "run"
    report = json.loads((folder / "report.json").read_text())
    assert report["train"]["world_size"] == 2
    assert report["train"]["zero_stage"] == 3
    assert report["shards"]["rows"] == 2560
    for result in (
        report["greedy"],
        report["stage_beam"]["2"],
        report["best_of_n"]["2"],
        report["majority"]["2"],
        report["oracle"]["2"],
        report["judge_alone"],
    ):
        low, high = result["interval"]
        assert 0 <= low <= result["accuracy"] <= high <= 1
        assert result["questions"] == 24
        assert result["failed"] == 0
        assert result["cost"]["tokens"] > 0
    assert report["judge"]["kind"] == "likelihood"
    assert 0 <= report["judge"]["accuracy"] <= 1
    assert 0 <= report["judge"]["swap_consistency"] <= 1
    assert set(report["judge"]["kinds"]) == {"likelihood", "verdict"}
    page = (folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert list(folder.glob("**/offline-run-*"))
    assert len(list(read_traces(folder / "traces.jsonl"))) == 24 * 4


@pytest.mark.usefixtures("first_run")
def test_both_exports_open_with_every_weight(recipe: Path) -> None:
    for part in ("generator", "judge"):
        load(str(recipe.parent / "run" / part / "model"))  # refuses missing and unexpected keys


@pytest.mark.usefixtures("first_run")
def test_a_second_run_repeats_no_finished_step(recipe: Path) -> None:
    weights = recipe.parent / "run" / "generator" / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run(recipe)
    assert again.returncode == 0, again.stdout + again.stderr
    assert weights.stat().st_mtime_ns == written
