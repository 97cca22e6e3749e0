"""Recipes and cluster files to render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagebeam.cluster.config import KubernetesCluster
from stagebeam.recipe import Recipe

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"


def recipe(**sections: Any) -> Recipe:
    """A recipe that trains on 8 GPUs and serves, with some sections changed."""
    engine = {"model": "/data/model", "scaling": {"num_gpus": 1, "max_replicas": 2}}
    settings: dict[str, Any] = {
        "name": "tried",
        "model": {"path": "org/name"},
        "data": {"shards": "/data/shards", "sources": [{"kind": "scenes", "rows": 1}]},
        "train": {"output_dir": "/data/train", "num_workers": 8},
        "serve": {"generator": engine, "judge": engine},
        "evaluation": {"output_dir": "/data/evaluation", "shards": "/data/test"},
    }
    return Recipe.model_validate({**settings, **sections})


def kubernetes(**settings: Any) -> KubernetesCluster:
    """A cluster with two nodes of 8 GPUs, with some settings changed."""
    given: dict[str, Any] = {
        "image": "stagebeam:1",
        "storage": {"claim": "data", "mount_path": "/data"},
        "cpu": {"cpus": 8, "memory_gib": 32, "max_nodes": 4},
        "gpu": {"gpus": 8, "cpus": 64, "memory_gib": 512, "max_nodes": 2},
    }
    return KubernetesCluster.model_validate({**given, **settings})
