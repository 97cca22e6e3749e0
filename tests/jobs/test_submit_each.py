"""Each job of a recipe, submitted to three raylets from a folder that is no clone, ends as it does
and leaves what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import namespaces
import pytest
import yaml
from ray.util.state import list_actors, list_tasks
from ray_nodes import environment, ray_cluster

sys.path.append(str(Path(__file__).parents[1] / "data"))

from teacher import MODEL, Teacher, serving, write_questions

from jobs.annotate import UNFINISHED
from stagebeam.data.manifest import read_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    namespaces.needed,
]

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "jobs" / "recipes" / "quickstart.yaml"
PATIENCE_S = 1200
ROWS, HELD_OUT, STEPS, ASKED, ANNOTATED = 128, 24, 6, 6, 12


@dataclass(frozen=True)
class Submitted:
    """How the command ended, how long it took, and what the job had at work on which nodes."""

    status: int
    said: str
    seconds: float
    places: Counter[tuple[str, str]]  # what it is called, the node

    def nodes(self, *names: str) -> int:
        """How many nodes had tasks or actors of these names, or names that begin so."""
        return len({node for name, node in self.places if name.startswith(names)})


@dataclass(frozen=True)
class Cluster:
    """Three raylets of one CPU each, and a folder that they all see."""

    url: str
    folder: Path

    def submit(self, job: str, recipe: Path) -> Submitted:
        env = {name: value for name, value in environment().items() if name != "WANDB_API_KEY"}
        env["PYTHONPATH"] = f"{ROOT / 'platform'}{os.pathsep}{ROOT}"
        before = self._places()
        command = [sys.executable, "-m", "jobs.submit", job, recipe.name, "--to", self.url]
        began = time.monotonic()
        ended = subprocess.run(
            command, env=env, cwd=recipe.parent, capture_output=True, text=True, timeout=PATIENCE_S
        )
        seconds = time.monotonic() - began
        places = {id_: at for id_, at in self._places().items() if id_ not in before}
        said = f"{ended.stdout[-2000:]}\n{ended.stderr}"
        found = Submitted(ended.returncode, said, seconds, Counter(places.values()))
        at_work = {name: found.nodes(name) for name, _ in sorted(found.places)}
        print(f"{job}: status {found.status} after {seconds:.0f} s, nodes at work {at_work}")
        return found

    def recipe(self, name: str = "recipe.yaml", **sections: Any) -> Path:
        """The quick start's recipe in small; `sections` are updated by what is given."""
        settings = yaml.safe_load(
            QUICKSTART.read_text().replace("runs/quickstart", str(self.folder))
        )
        settings["model"]["tiny_layers"] = 2
        for source, rows in zip(settings["data"]["sources"], (ROWS, HELD_OUT), strict=True):
            source["rows"] = rows
        settings["data"]["rows_per_shard"] = 16
        settings["train"] |= {"global_batch_size": 8, "max_steps": STEPS, "warmup_steps": 2}
        settings["train"] |= {"evaluation": None, "checkpoint_every": 3, "encoders": 1}
        two = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.3}
        for engine in ("generator", "judge"):
            settings["serve"][engine] |= {"model": str(self.folder / "generator/model")}
            settings["serve"][engine] |= {"scaling": two}
        settings["search"]["max_new_tokens"] = 24
        settings["evaluation"] |= {"rows": ASKED, "card_questions": 2, "candidates": [2]}
        settings["tracking"] = {"enabled": False}
        del settings["judge_training"]
        for section, changes in sections.items():
            settings[section] = settings.get(section, {}) | changes
        path = self.folder / name
        path.write_text(yaml.safe_dump(settings))
        return path

    def _places(self) -> dict[str, tuple[str, str]]:
        """By its id, every task and actor that there was: what it is called, and its node."""
        tasks = list_tasks(address=self.url, limit=10_000)
        actors = list_actors(address=self.url, limit=10_000)
        places = {t.task_id: (t.name, t.node_id) for t in tasks if t.type == "NORMAL_TASK"}
        places |= {a.actor_id: (a.class_name, a.node_id) for a in actors}
        return {id_: (name, node) for id_, (name, node) in places.items() if node}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Each with files of its own, too: Ray's agents would replace the shipped code of one another
    # under a running job.
    with ray_cluster(head_cpus=1, own_addresses=True) as nodes:
        for _ in range(2):
            nodes.add()
        yield Cluster(nodes.url, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def prepared(cluster: Cluster) -> Submitted:
    return cluster.submit("prepare", cluster.recipe())


@pytest.fixture(scope="module")
def trained(cluster: Cluster, prepared: Submitted) -> Submitted:
    return cluster.submit("train", cluster.recipe())


def test_prepare(cluster: Cluster, prepared: Submitted) -> None:
    assert prepared.status == 0, prepared.said
    assert prepared.nodes("MapBatches(run)") >= 2
    shards = cluster.folder / "shards"
    assert [read_manifest(shards / part).rows for part in ("train", "test")] == [ROWS, HELD_OUT]


def test_train(cluster: Cluster, trained: Submitted) -> None:
    assert trained.status == 0, trained.said
    assert trained.nodes("RayTrainWorker") == 2  # a rank has more than half of a node
    summary = json.loads((cluster.folder / "generator" / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["world_size"] == 2
    assert (cluster.folder / "generator" / "model" / "model.safetensors").exists()


def test_evaluate(cluster: Cluster, trained: Submitted) -> None:
    evaluated = cluster.submit("evaluate", cluster.recipe())
    assert evaluated.status == 0, evaluated.said
    assert evaluated.nodes("ServeReplica:stagebeam:generator", "ServeReplica:stagebeam:judge") >= 2
    report = json.loads((cluster.folder / "report.json").read_text())
    assert report["greedy"]["questions"] == report["judge_alone"]["questions"] == ASKED
    assert report["stage_beam"]["2"]["failed"] == report["greedy"]["failed"] == 0


def questions(cluster: Cluster) -> list[dict[str, str]]:
    """Sources for a teacher."""
    written = write_questions(cluster.folder, ["how many"] * ANNOTATED)
    images = str(cluster.folder / "img")
    return [{"kind": "llava_cot", "annotations": str(written), "image_root": images}]


def test_annotate(cluster: Cluster) -> None:
    """Its work is to wait for a teacher: the driver does it, on the head."""
    section = {"output_dir": str(cluster.folder / "annotated"), "sources": questions(cluster)}
    with serving(Teacher()) as url:
        section["teacher"] = {"base_url": url, "model": MODEL, "concurrency": 4}
        annotated = cluster.submit("annotate", cluster.recipe("annotate.yaml", annotate=section))
    assert annotated.status == 0, annotated.said
    report = json.loads((cluster.folder / "annotated" / "report.json").read_text())
    assert report["complete"] and report["annotated"] == ANNOTATED


NONE = "/nowhere/shards"


@pytest.mark.parametrize(
    ("job", "sections", "reason"),
    [
        ("prepare", {"data": {"sources": []}}, "The recipe quickstart has no data.sources"),
        ("annotate", {}, "The recipe 'quickstart' has no annotate section."),
        ("train", {"data": {"shards": NONE}}, f"There are no prepared shards in {NONE}"),
        ("evaluate", {"evaluation": {"shards": NONE}}, f"There are no prepared shards in {NONE}"),
    ],
)
def test_a_job_that_fails_ends_the_command_with_its_status_and_its_reason(
    cluster: Cluster, job: str, sections: dict[str, Any], reason: str
) -> None:
    failed = cluster.submit(job, cluster.recipe(f"failing-{job}.yaml", **sections))
    assert failed.status == 2
    assert f"failed with exit status 2: {reason}" in failed.said.splitlines()[-1]


def test_an_unfinished_annotation_has_a_status_of_its_own(cluster: Cluster) -> None:
    section = {"output_dir": str(cluster.folder / "dear"), "sources": questions(cluster)}
    with serving(Teacher()) as url:
        prices = {"price_in": 1.0, "price_out": 1.0, "max_tokens": 100}
        section["teacher"] = {"base_url": url, "model": MODEL, **prices}
        section["spend_limit"] = 0.002
        stopped = cluster.submit("annotate", cluster.recipe("dear.yaml", annotate=section))
    assert stopped.status == UNFINISHED
    last = stopped.said.splitlines()[-1]
    assert "failed with exit status 3" in last and "spending limit" in last
