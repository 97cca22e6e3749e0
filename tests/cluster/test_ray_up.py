"""Files of `ray up`: what Ray's own schema and preparation take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from tried import ROOT, recipe
from typer.testing import CliRunner

from jobs.cli import main as cli
from stagebeam.cluster.config import AwsCluster, OnPremisesCluster, load_cluster
from stagebeam.cluster.ray_up import ray_up
from stagebeam.recipe import Recipe

STORAGE = {"storage": {"mount_path": "/data"}}
FILES = sorted((ROOT / "cluster" / "ray-up").glob("*.yaml"))


def aws(**settings: Any) -> AwsCluster:
    found = load_cluster(ROOT / "cluster" / "aws.yaml")
    assert isinstance(found, AwsCluster)
    return AwsCluster.model_validate({**found.model_dump(), **STORAGE, **settings})


def machines(hosts: int = 2, **settings: Any) -> OnPremisesCluster:
    found = load_cluster(ROOT / "cluster" / "on-premises.yaml")
    assert isinstance(found, OnPremisesCluster)
    workers = {
        "hosts": [f"gpu-{n}" for n in range(hosts)],
        "cpus": 64,
        "memory_gib": 512,
        "gpus": 8,
    }
    given = {**found.model_dump(), **STORAGE, "workers": workers, **settings}
    return OnPremisesCluster.model_validate(given)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ray_takes_the_files(file: Path) -> None:
    """By its schema as they are, and once more with Ray's defaults filled in."""
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    prepared = prepare_config(given)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == given[key], "Ray's defaults would install and start another Ray"
    given.setdefault("cluster_synced_files", [])
    validate_config(given)


def test_rays_schema_refuses_what_is_wrong() -> None:
    given = ray_up(recipe(), aws()) | {"cluster_synced_files": []}
    validate_config(given)
    with pytest.raises(Exception, match="unheard_of"):
        validate_config(given | {"unheard_of": 1})
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(given | {"head_node_type": "other"})


def test_instances_are_as_many_as_the_largest_work_takes() -> None:
    """Sixteen ranks are two machines; serving on 4 + 2 GPUs is one."""

    def types(of: Recipe) -> dict[str, Any]:
        found: dict[str, Any] = ray_up(of, aws())["available_node_types"]
        return found

    train = {"output_dir": "/data/train", "num_workers": 16}
    both = types(recipe(train=train))
    assert both["gpu"]["max_workers"] == 2 and both["gpu"]["min_workers"] == 0
    assert both["gpu"]["resources"]["GPU"] == 8 and both["head"]["resources"] == {"CPU": 0}
    assert types(recipe(train=None))["gpu"]["max_workers"] == 1
    assert "gpu" not in types(recipe(train=None, serve=None, evaluation=None))


def test_hosts_that_are_too_few_are_one_sentence() -> None:
    train = {"output_dir": "/data/train", "num_workers": 16}
    assert ray_up(recipe(train=train), machines(2))["max_workers"] == 2
    with pytest.raises(ValueError, match=r"takes 2 machines of 8 GPUs, and the cluster has 1\.$"):
        ray_up(recipe(train=train), machines(1))


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("made", [aws, machines])
def test_every_node_is_told_of_the_token(made: Any, token: bool) -> None:
    found = ray_up(recipe(), made(token_auth=token))
    mode = f"RAY_AUTH_MODE={'token' if token else 'disabled'} ray start"
    assert all(mode in found[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert bool(found["file_mounts"]) is token


def test_the_dashboard_listens_to_its_own_machine_alone() -> None:
    for found in (ray_up(recipe(), aws()), ray_up(recipe(), machines())):
        assert "--dashboard-host=127.0.0.1" in found["head_start_ray_commands"][-1]
        assert "--num-cpus=0" in found["head_start_ray_commands"][-1]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_job_of_its_own_is_kubernetes_alone() -> None:
    given = ("render", str(ROOT / "jobs/recipes/llava-o1-llama3.2-11b-1n8g-zero3.yaml"))
    options = ("--what", "train", "--cluster", str(ROOT / "cluster" / "aws.yaml"))
    failed = CliRunner().invoke(cli, [*given, *options])
    assert failed.exit_code == 2
    assert failed.output.startswith("error: ") and "`ray job submit`" in failed.output
