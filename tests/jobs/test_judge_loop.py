"""The loop from traces to training: what a search found out is what a judge learns."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from math import exp, log1p
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import pytest
import yaml

from jobs.preferences import write_pairs
from stagebeam.data.preferences import Preference, read_preferences
from stagebeam.data.shards import iter_examples
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference.load import load_generator, load_judge
from stagebeam.inference.types import JudgeRequest, Prompt
from stagebeam.recipe import EngineConfig, JudgeConfig
from stagebeam.search import SearchSettings, Trace, answer
from stagebeam.search.trace import read_traces, write_traces

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "jobs" / "recipes" / "quickstart.yaml"
QUESTIONS = 16
SETTINGS = SearchSettings(method="stage_beam", candidates=4, temperature=1.0, max_new_tokens=96)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(module: str, recipe: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "TMPDIR": str(recipe.parent / "t"),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", module, str(recipe)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A generator that writes stages, and not much more. The folder's name is short, so that Ray's
    session lies inside it."""
    with TemporaryDirectory(prefix="l", dir="/tmp") as name:
        folder = Path(name)
        (folder / "t").mkdir()
        settings = yaml.safe_load(RECIPE.read_text().replace("runs/quickstart", str(folder)))
        settings["data"]["sources"][0]["rows"] = 2400
        settings["data"]["sources"][1]["rows"] = 64
        settings["train"].update(evaluation=None, warmup_steps=10, global_batch_size=16)
        settings["judge_training"].update(
            pairs=str(folder / "pairs"), steps=40, pairs_per_row=1.0, pair_weight=1.0
        )
        settings["tracking"] = {"enabled": False}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
        run("jobs.prepare", folder / "recipe.yaml")
        run("jobs.train", folder / "recipe.yaml")
        yield folder


async def traces_of(model: Path, shards: Path) -> list[Trace]:
    """Real searches, judged by reading the generator's own option tokens: hardly better than a
    coin, and so not what a likelihood judge thinks before it has learnt."""
    generator = load_generator(EngineConfig(model=str(model)))
    judge = load_judge(JudgeConfig(model=str(model), kind="verdict"))
    ids = {"generator_id": generator.fingerprint, "judge_id": judge.fingerprint}
    try:
        asked = [
            answer(prompt_of(example), generator, judge, SETTINGS, **ids)
            for example in islice(iter_examples(shards), QUESTIONS)
        ]
        return list(await asyncio.gather(*asked))
    finally:
        generator.close()
        judge.close()


async def margins(model: Path, pairs: list[Preference]) -> list[float]:
    """By how much the likelihood judge with this model prefers each chosen text, in nats."""
    judge = load_judge(JudgeConfig(model=str(model), kind="likelihood"))

    async def margin(pair: Preference) -> float:
        prompt = Prompt(pair.messages, tuple(image.bytes for image in pair.images))
        candidates = (pair.chosen, pair.rejected)
        request = JudgeRequest(prompt, pair.stage, pair.prefix, candidates, ((0, 1),))
        return (await judge.compare(request)).verdicts[0].margin

    try:
        return list(await asyncio.gather(*map(margin, pairs)))
    finally:
        judge.close()


def loss(found: list[float]) -> float:
    """What training minimises of the pairs: the mean of -log sigmoid(margin)."""
    return fmean(max(-m, 0.0) + log1p(exp(-abs(m))) for m in found)


def test_a_judge_learns_the_pairs_that_a_search_found(folder: Path) -> None:
    generator, shards = folder / "generator" / "model", folder / "shards" / "train"
    write_traces(folder / "traces.jsonl", asyncio.run(traces_of(generator, shards)))
    assert any(s.matches for trace in read_traces(folder / "traces.jsonl") for s in trace.stages)
    manifest = write_pairs([folder / "traces.jsonl"], [shards], folder / "pairs")
    pairs = read_preferences(folder / "pairs")
    assert len(pairs) == manifest.rows > 50
    run("jobs.judge", folder / "recipe.yaml")
    before = asyncio.run(margins(generator, pairs))
    after = asyncio.run(margins(folder / "judge" / "model", pairs))
    preferred = [fmean(margin > 0 for margin in found) for found in (before, after)]
    assert loss(after) < 0.8 * loss(before)
    assert preferred[1] > preferred[0] + 0.1
