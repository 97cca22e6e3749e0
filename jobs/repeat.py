"""What the report says about how to do it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jobs.cluster import ROOT
from stagebeam.data.manifest import read_manifest
from stagebeam.evaluation.report import RECIPE_FILE
from stagebeam.evaluation.results import Repeat, RepeatFile, RepeatWeights
from stagebeam.recipe import EvaluationConfig, Recipe
from stagebeam.storage import Place

_PACKAGES = (
    "stagebeam",
    "datasets",
    "deepspeed",
    "numpy",
    "openai",
    "pillow",
    "pyarrow",
    "pydantic",
    "ray",
    "scipy",
    "torch",
    "transformers",
    "vllm",
)


def repeat_of(
    recipe: Recipe,
    config: EvaluationConfig,
    command: Sequence[str],
    models: dict[str, str],
    folder: Place | None = None,
) -> Repeat:
    """`command` is the program's name, the job's, and what follows the recipe's file; `models` are
    the fingerprints of the `generator` and the `judge`; `folder` holds the evaluation's
    files, if that is not yet its output_dir."""
    shards = [config.shards]
    if command[1] == "quickstart":
        shards.insert(0, recipe.data.shards)
    return Repeat(
        command=shlex.join([*command[:2], str(config.output_dir / RECIPE_FILE), *command[2:]]),
        directory=str(Path.cwd()),
        commit=commit(ROOT),
        files=(
            *(file for place in shards for file in _shards(place)),
            *_others(recipe, config, folder or config.output_dir),
        ),
        weights={part: _weights(recipe, part, models[part]) for part in ("generator", "judge")},
        seeds={"recipe": recipe.seed, "search": recipe.search.seed},
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide an answer, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path) -> str | None:
    """Of the git checkout whose top is `root`, with `-dirty` where files that git knows were
    changed; None where it is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _shards(folder: Place) -> list[RepeatFile]:
    """With the checksums of their manifest."""
    return [
        RepeatFile(path=str(folder / shard.file), sha256=shard.sha256, rows=shard.rows)
        for shard in read_manifest(folder).shards
    ]


def _others(recipe: Recipe, config: EvaluationConfig, folder: Place) -> list[RepeatFile]:
    """The cutoffs of `retrace`, and the benchmarks' files."""
    found = []
    path = recipe.search.calibration
    if path is not None and path.exists():
        found.append(RepeatFile(path=str(path), sha256=_sha256(path)))
    if config.benchmarks is not None:
        for name in dict.fromkeys(config.benchmarks.names):
            figures = folder / "benchmarks" / name / "figures.json"
            if not figures.exists():  # not every job asks them
                continue
            told = json.loads(figures.read_text(encoding="utf-8"))
            file = str(config.benchmarks.folder / told["file"])
            found.append(RepeatFile(path=file, sha256=told["sha256"], rows=told["rows"]))
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights(recipe: Recipe, part: str, fingerprint: str) -> RepeatWeights:
    serve = recipe.serve
    if serve is None:
        return RepeatWeights(folder="of the endpoint that was asked", fingerprint=fingerprint)
    model = serve.generator.model if part == "generator" else serve.judge.model
    return RepeatWeights(folder=model, fingerprint=fingerprint)
