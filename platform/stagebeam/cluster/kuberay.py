"""KubeRay's objects of a recipe: RayCluster, RayJob, RayService, and what they refer to.

The recipe goes along in a ConfigMap that is named by its content: pods read what they were rendered
for, and for a RayService with another recipe KubeRay starts a second cluster beside the first.
Needs KubeRay 1.6 (`authOptions.secretName`).
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Literal, get_args

import yaml

from stagebeam.cluster.config import KubernetesCluster, Priority
from stagebeam.cluster.demands import check_paths, keys
from stagebeam.cluster.pods import RECIPE_FILE, RECIPE_PATH, Pods
from stagebeam.cluster.sizing import (
    Group,
    Machines,
    Work,
    groups,
    possible,
    standing_groups,
)
from stagebeam.recipe import Recipe

Manifest = dict[str, Any]
JobWork = Literal["prepare", "annotate", "train", "evaluate"]  # what a RayJob runs
JOB_WORK: tuple[JobWork, ...] = get_args(JobWork)

# KubeRay makes names of pods and services from those of jobs and services.
LONGEST_NAME = 47


def ray_cluster(recipe: Recipe, cluster: KubernetesCluster) -> list[Manifest]:
    """A standing cluster for `ray job submit` and `serve deploy`; its workers come with work.

    Raises ValueError where the recipe asks for what the cluster does not have.
    """
    work = possible(recipe)
    found = standing_groups(recipe, _machines(cluster))
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(name_of(recipe, "cluster"), "cluster", cluster),
        "spec": _cluster_spec(
            recipe, cluster, work, found, pods=Pods(cluster, cluster.job_priority)
        ),
    }
    return [*_priority_class(cluster.job_priority), manifest]


def ray_job(
    work: JobWork, recipe: Recipe, cluster: KubernetesCluster, *flags: str
) -> list[Manifest]:
    """A job on a cluster of its own, which goes with it; `flags` are the job's own.

    An evaluation that is told where a service is (`--url`) brings up no engines itself.
    Raises ValueError as `ray_cluster` does, and where the recipe lacks the job's section.
    """
    config_map = _config_map(recipe, cluster)
    remote = work == "evaluate" and "--url" in flags
    found = groups(work, recipe, _machines(cluster)) if not remote else ()
    spec: Manifest = {
        "entrypoint": shlex.join(("python", "-m", f"jobs.{work}", RECIPE_PATH, *flags)),
        "submissionMode": cluster.jobs.submission,
        "backoffLimit": cluster.jobs.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": cluster.jobs.keep_seconds,
    }
    if work != "evaluate":  # which asks the HTTP proxy beside it, and that is on the head
        spec["entrypointNumCpus"] = cluster.jobs.driver_cpus
    if cluster.jobs.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = cluster.jobs.deadline_seconds
    pods = Pods(cluster, cluster.job_priority, config_map["metadata"]["name"])
    spec["rayClusterSpec"] = _cluster_spec(recipe, cluster, (work,), found, pods=pods)
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name_of(recipe, work), work, cluster),
        "spec": spec,
    }
    return [*_priority_class(cluster.job_priority), config_map, manifest]


def ray_service(
    recipe: Recipe, cluster: KubernetesCluster, serve_config: dict[str, Any]
) -> list[Manifest]:
    """The recipe's service. `serve_config` is what `serve deploy` takes, of the recipe at
    `RECIPE_PATH`. Raises ValueError as `ray_job` does."""
    config_map = _config_map(recipe, cluster)
    found = groups("serve", recipe, _machines(cluster))
    assert recipe.serve is not None, "there are groups for it"
    drain = math.ceil(recipe.serve.drain_seconds)
    pods = Pods(
        cluster,
        cluster.service_priority,
        config_map["metadata"]["name"],
        drain_seconds=drain,
        serve_port=serve_config["http_options"]["port"],
    )
    service = cluster.service
    spec: Manifest = {
        "serveConfigV2": yaml.safe_dump(serve_config, sort_keys=False),
        "upgradeStrategy": _upgrade(cluster),
        "rayClusterDeletionDelaySeconds": max(drain, service.old_cluster_seconds),
        # no replica is there, and its pod has enough to do
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": _cluster_spec(recipe, cluster, ("serve",), found, pods=pods),
    }
    metadata = _metadata(name_of(recipe, "serve"), "serve", cluster)
    annotations = metadata.setdefault("annotations", {})
    annotations["ray.io/initializing-timeout"] = f"{service.start_seconds}s"
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata,
        "spec": spec,
    }
    return [*_priority_class(cluster.service_priority), config_map, manifest]


def name_of(recipe: Recipe, what: str) -> str:
    """A name that Kubernetes takes: lower case, at most 47 characters, from a letter on. A longer
    one ends with a few digits of its hash."""
    name = f"{_slug(recipe.name)}-{what}"
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: LONGEST_NAME - 7].rstrip('-')}-{digest}"


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug if slug[:1].isalpha() else f"run-{slug}".rstrip("-")


def _machines(cluster: KubernetesCluster) -> Machines:
    return Machines(cluster.cpu, cluster.gpu, cluster.jobs.driver_cpus)


def _metadata(name: str, component: str, cluster: KubernetesCluster) -> Manifest:
    labels = {"app.kubernetes.io/name": "stagebeam", "app.kubernetes.io/component": component}
    metadata: Manifest = {"name": name, "namespace": cluster.namespace, "labels": labels}
    if cluster.kueue is not None:
        labels["kueue.x-k8s.io/queue-name"] = cluster.kueue.queue
        if cluster.kueue.priority_class is not None:
            labels["kueue.x-k8s.io/priority-class"] = cluster.kueue.priority_class
        if cluster.kueue.elastic:
            metadata["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    return metadata


def _config_map(recipe: Recipe, cluster: KubernetesCluster) -> Manifest:
    """The recipe as one file, without what it leaves to its defaults; named by its content."""
    text = recipe.to_yaml()
    name = f"{_slug(recipe.name)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "immutable": True,
        "data": {RECIPE_FILE: text},
    }


def _priority_class(priority: Priority | None) -> list[Manifest]:
    if priority is None or priority.value is None:
        return []
    return [
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": priority.class_name},
            "value": priority.value,
            "preemptionPolicy": "PreemptLowerPriority" if priority.preempts else "Never",
        }
    ]


def _upgrade(cluster: KubernetesCluster) -> Manifest:
    upgrade: Manifest = {"type": cluster.service.upgrade}
    if (steps := cluster.service.incremental) is not None:
        upgrade["clusterUpgradeOptions"] = {
            "gatewayClassName": steps.gateway_class,
            "stepSizePercent": steps.step_percent,
            "intervalSeconds": steps.interval_seconds,
            "maxSurgePercent": steps.surge_percent,
        }
    return upgrade


def _cluster_spec(
    recipe: Recipe,
    cluster: KubernetesCluster,
    work: Sequence[Work],
    found: Iterable[Group],
    *,
    pods: Pods,
) -> Manifest:
    needed: dict[str, bool] = {}
    for each in work:
        check_paths(each, recipe, cluster.storage)
        for name, must in keys(each, recipe).items():
            needed[name] = must or needed.get(name, False)
    environment = pods.environment(needed)
    spec: Manifest = {
        "rayVersion": version("ray"),  # the image's, which is made from the same lock
        "authOptions": {"mode": "token" if cluster.token_auth else "disabled"},
        "enableInTreeAutoscaling": cluster.autoscaler.enabled,
    }
    if cluster.token_secret is not None:
        spec["authOptions"]["secretName"] = cluster.token_secret
    if cluster.autoscaler.enabled:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": cluster.autoscaler.idle_seconds,
            "upscalingMode": cluster.autoscaler.upscaling,
            "securityContext": pods.container_security(),
        }
    if "serve" in work and (redis := cluster.service.redis) is not None:
        spec["gcsFaultToleranceOptions"] = {"redisAddress": redis.address}
        if redis.password_secret is not None:
            reference = {"name": redis.password_secret, "key": redis.password_key}
            password = {"valueFrom": {"secretKeyRef": reference}}
            spec["gcsFaultToleranceOptions"]["redisPassword"] = password
    spec["headGroupSpec"] = {
        # Ray's own processes are all that a head should have to do
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
        "template": pods.head(environment),
    }
    spec["workerGroupSpecs"] = [
        {
            "groupName": group.name,
            "replicas": group.least if cluster.autoscaler.enabled else group.most,
            "minReplicas": group.least if cluster.autoscaler.enabled else group.most,
            "maxReplicas": group.most,
            "rayStartParams": {},
            "template": pods.worker(group, environment),
        }
        for group in found
    ]
    return spec
