"""`python -m jobs.serve` as a person runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import yaml

from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny

ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
}


def command(recipe: Path) -> list[str]:
    return [sys.executable, "-u", "-m", "jobs.serve", str(recipe)]


def test_it_prints_its_address_serves_and_stops_at_an_interrupt(tmp_path: Path) -> None:
    build_tiny(tmp_path / "tiny", wording())
    engine = {"model": "tiny", "scaling": {"num_cpus": 0.5}}
    recipe = {
        "name": "served",
        "model": {"path": "tiny"},
        "data": {"shards": "shards"},
        "serve": {"port": 0, "generator": engine, "judge": engine},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    # Relative model folders start from where the job was started.
    with subprocess.Popen(
        command(path), cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        seen = ""
        while not (found := re.search(r"^curl (http://\S+?)/v1", seen, re.MULTILINE)):
            line = job.stdout.readline()
            assert line, f"the job ended early: {seen}"
            seen += line
        assert httpx.get(f"{found[1]}/healthz").status_code == 200
        job.send_signal(signal.SIGINT)
        assert job.wait(90) == 0


def test_a_recipe_that_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nmodel: {path: m}\ndata: {shards: d}\n")
    done = subprocess.run(command(path), env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["error: The recipe 'x' has no serve section."]
