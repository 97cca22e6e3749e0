"""Cluster files: a mistake is one sentence that names the file and the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from tried import GOLDEN, ROOT

from stagebeam.cluster import config
from stagebeam.cluster.config import (
    AwsCluster,
    KubernetesCluster,
    OnPremisesCluster,
    Storage,
    load_cluster,
)

FILES = [*sorted((ROOT / "cluster").glob("*.yaml")), GOLDEN / "given-cluster.yaml"]
CLUSTERS = [file for file in FILES if file.name != "runtime_env.yaml"]
KINDS = (KubernetesCluster, AwsCluster, OnPremisesCluster)


@pytest.fixture
def given() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((GOLDEN / "given-cluster.yaml").read_text())
    return settings


def refused(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError) as caught:
        load_cluster(path)
    said = str(caught.value)
    assert said.startswith(f"The cluster {path} is wrong: ") and said.endswith(".")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.stem)
def test_every_shipped_cluster_file_loads(file: Path) -> None:
    load_cluster(file)


def mappings(settings: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all mappings that have named keys."""
    if isinstance(settings, dict):
        if place[-1:] not in (("environment",), ("node_selector",), ("devices",)):
            yield place
        for key, value in settings.items():
            yield from mappings(value, (*place, key))
    elif isinstance(settings, list):
        for number, value in enumerate(settings):
            yield from mappings(value, (*place, number))


def test_unknown_keys_are_refused_everywhere(given: dict[str, Any], tmp_path: Path) -> None:
    places = list(mappings(given))
    assert len(places) == 15
    for place in places:
        section = given
        for key in place:
            section = section[key]
        section["unheard_of"] = 1
        field = ".".join(map(str, (*place, "unheard_of")))
        assert f"unknown key '{field}'" in refused(tmp_path / "cluster.yaml", given)
        del section["unheard_of"]


def below(annotation: Any) -> list[type[BaseModel]]:
    """Sections that a field's type names."""
    found = (annotation, *getattr(annotation, "__args__", ()))
    return [each for each in found if isinstance(each, type) and issubclass(each, BaseModel)]


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in below(field.annotation):
            yield from models(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_says_what_it_is(kind: type[BaseModel]) -> None:
    for model in models(kind):
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description or below(field.annotation), f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "gke"}, "its kind must be one of kubernetes, aws, on_premises"),
        ({"kind": None}, "its kind must be one of"),
        ({"storage": {}}, "'storage': storage needs a mount_path, urls or both"),
        ({"storage": {"claim": "data"}}, "'storage'"),
        ({"storage": {"urls": ["bucket"]}}, "'storage': 'bucket' is not a URL"),
        (
            {"environment": {"WANDB_API_KEY": "abc"}},
            "WANDB_API_KEY sounds like a secret; this file is no place for one",
        ),
        ({"environment": {"HF_TOKEN": "abc"}}, "HF_TOKEN sounds like a secret"),
        (
            {"kueue": {"queue": "q"}},
            "under kueue, set autoscaler.enabled to false or kueue.elastic",
        ),
        ({"autoscaler": {"enabled": False}}, "an upgrade in steps needs the autoscaler"),
        ({"service": {"upgrade": "NewClusterWithIncrementalUpgrade"}}, "needs incremental"),
        ({"keys_secret": None}, "secret_environment needs keys_secret"),
        ({"token_auth": False, "token_secret": "t"}, "token_secret needs token_auth"),
        ({"jobs": {"driver_cpus": 9}}, "jobs.driver_cpus is more than cpu.cpus"),
        ({"gpu": {"gpus": 0}}, "'gpu.gpus'"),
        ({"namespace": "Upper"}, "'namespace'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    changes: dict[str, Any], says: str, given: dict[str, Any], tmp_path: Path
) -> None:
    assert says in refused(tmp_path / "cluster.yaml", given | changes)


def test_names_that_only_resemble_secrets_and_paths_to_them_are_allowed() -> None:
    base = {"image": "i", "environment": {}}
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/var/run/gcp.json"),
    ):
        assert config.Base.model_validate({**base, "environment": {name: value}})


@pytest.mark.parametrize(
    ("path", "held"),
    [
        ("/mnt/shared/a", True),
        ("/mnt/shared", True),
        ("/mnt/shared-not", False),
        ("runs/a", False),
        ("s3://bucket/a", True),
        ("s3:/bucket/a", True),  # what becomes of it in a path object
        ("s3://bucket2/a", False),
        ("gs://bucket/a", False),
    ],
)
def test_storage_knows_what_all_nodes_see(path: str, held: bool) -> None:
    storage = Storage(mount_path="/mnt/shared", urls=("s3://bucket",))
    assert storage.holds(path) is held
