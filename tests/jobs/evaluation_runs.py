"""A whole evaluation of a service in a process of its own, and what two of them must agree in."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from job_process import end_of, start_job

from stagebeam.data.writing import write_shards
from stagebeam.recipe import Autoscaling, DataConfig
from stagebeam.records import Example
from stagebeam.search.trace import read_traces

ROWS, CARD = 20, 12
SCALING = Autoscaling(num_cpus=0.4)
SEARCH = {"temperature": 1.0, "max_new_tokens": 24}
TIMES = {"created", "seconds", "wandb"}
# What an engine still had in its caches: a service that goes on has more there, and reading a
# prompt that it has takes no pass.
CACHED = {"prefill_tokens", "image_encodes", "cache_hits", "sequential_passes"}


def write_recipe(folder: Path, examples: list[Example]) -> Path:
    write_shards(examples, folder / "held-out", DataConfig(shards=folder / "held-out"))
    recipe = {
        "name": "killed",
        "model": {"path": "none"},
        "data": {"shards": "none"},
        "search": SEARCH,
        "evaluation": {
            "output_dir": str(folder / "out"),
            "shards": str(folder / "held-out"),
            "rows": ROWS,
            "card_questions": CARD,
            "candidates": [2, 4],
            "concurrency": 4,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@contextmanager
def evaluating(recipe: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    job = start_job(recipe.parent / "log", "jobs.evaluate", recipe, "--url", url)
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def to_its_end(recipe: Path, url: str) -> Path:
    with evaluating(recipe, url) as job:
        assert job.wait(timeout=900) == 0, end_of(recipe.parent / "log")
    return recipe.parent / "out"


def lines(out: Path) -> int:
    files = (out / "answers.jsonl", out / "card" / "answers.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def without(told: Any, keys: set[str]) -> Any:
    if isinstance(told, dict):
        return {key: without(value, keys) for key, value in told.items() if key not in keys}
    return [without(value, keys) for value in told] if isinstance(told, list) else told


def answers(out: Path, keys: set[str]) -> dict[tuple[str, int, str], Any]:
    """Every answer by what it is an answer to, which there must be one of."""
    found = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    asked = Counter((row["method"], row["n"], row["id"]) for row in found)
    assert set(asked.values()) == {1}
    return {(row["method"], row["n"], row["id"]): without(row, keys) for row in found}


def expect_equal(broken: Path, unbroken: Path, changing: set[str]) -> dict[str, Any]:
    """The report of both, whose answers, traces and figures are the same but for what is
    `changing`."""
    assert lines(broken) == lines(unbroken)
    ours, theirs = (answers(out, changing) for out in (broken, unbroken))
    assert ours == theirs
    ours, theirs = (
        {trace.id: trace.text for trace in read_traces(out / "traces.jsonl")}
        for out in (broken, unbroken)
    )
    assert ours == theirs
    ours, theirs = (
        without(json.loads((out / "report.json").read_text()), changing)
        for out in (broken, unbroken)
    )
    assert ours == theirs
    return dict(ours)
