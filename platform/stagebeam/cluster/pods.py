"""Pods of the head and of the workers: image, resources, storage, keys, rights.

Requests are limits, so that no pod is evicted for what another one takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagebeam.cluster.config import KubernetesCluster, Placement, Priority
from stagebeam.cluster.sizing import Group

RECIPE_FOLDER, RECIPE_FILE = "/etc/stagebeam", "recipe.yaml"
RECIPE_PATH = f"{RECIPE_FOLDER}/{RECIPE_FILE}"
GCS_PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 8080
# Of a pod's memory: 0.3 that Ray takes for its object store, and room for NCCL and DeepSpeed.
_SHM_SHARE = 0.4
_STOP_SECONDS = 60  # for Ray's own processes to end


@dataclass(frozen=True, slots=True)
class Pods:
    """Makes the pods of one manifest."""

    cluster: KubernetesCluster
    priority: Priority | None
    config_map: str | None = None  # with the recipe, where pods have one
    drain_seconds: int = 0  # that workers still have for answers under way when they are stopped
    serve_port: int | None = None

    def environment(self, keys: Mapping[str, bool]) -> list[dict[str, Any]]:
        """Variables of every container; those with keys refer to the Secret.

        `keys` are the recipe's, with True for those that must be there. Raises ValueError where
        the cluster names no Secret for one of these.
        """
        plain = [{"name": name, "value": text} for name, text in self.cluster.environment.items()]
        secret = self.cluster.keys_secret
        if secret is None:
            if missing := [name for name, must in keys.items() if must]:
                raise ValueError(
                    f"The recipe needs {', '.join(missing)}: name the Secret that has them in "
                    "keys_secret of the cluster file."
                )
            return plain
        needed = {**keys, **dict.fromkeys(self.cluster.secret_environment, True)}
        return [*plain, *(_secret(secret, name, must) for name, must in sorted(needed.items()))]

    def container_security(self) -> dict[str, Any]:
        """Rights of a container: none."""
        return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

    def head(self, environment: list[dict[str, Any]]) -> dict[str, Any]:
        """The head's pod. Ray's client port is not opened."""
        head = self.cluster.head
        ports = {"gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, **self._ports()}
        resources = {"cpu": str(head.cpus), "memory": f"{head.memory_gib}Gi"}
        container = self._container("ray-head", resources, environment, ports)
        return self._pod(container, head, head.memory_gib)

    def worker(self, group: Group, environment: list[dict[str, Any]]) -> dict[str, Any]:
        """The pod of one worker of a group."""
        resources = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
        placement: Placement = self.cluster.cpu
        container_rights = self.container_security()
        if group.gpus:
            gpu = self.cluster.gpu
            assert gpu is not None, "the group is of its machines"
            placement = gpu
            resources[gpu.resource] = str(group.gpus)
            if gpu.devices and group.together:
                share = {name: n * group.gpus // gpu.gpus for name, n in gpu.devices.items()}
                resources |= {name: str(count) for name, count in share.items() if count}
                # such devices read and write memory that must stay where it is
                container_rights["capabilities"]["add"] = ["IPC_LOCK"]
        container = self._container("ray-worker", resources, environment, self._ports())
        container["securityContext"] = container_rights
        pod = self._pod(container, placement, group.memory_gib)
        # Ray's autoscaler talks to Kubernetes from the head alone
        pod["spec"]["automountServiceAccountToken"] = False
        return pod

    def _ports(self) -> dict[str, int]:
        serve = {} if self.serve_port is None else {"serve": self.serve_port}
        return {"metrics": METRICS_PORT, **serve}

    def _container(
        self,
        name: str,
        resources: dict[str, str],
        environment: list[dict[str, Any]],
        ports: dict[str, int],
    ) -> dict[str, Any]:
        storage = self.cluster.storage
        # Kubernetes sends nothing new to a pod from here on, and Ray would end at once
        stop = f"sleep {self.drain_seconds}; ray stop" if self.drain_seconds else "ray stop"
        mounts = [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "ray", "mountPath": "/tmp/ray"},
        ]
        if storage.claim is not None:
            mounts.append({"name": "storage", "mountPath": str(storage.mount_path)})
        if self.config_map is not None:
            mounts.append({"name": "recipe", "mountPath": RECIPE_FOLDER})
        return {
            "name": name,
            "image": self.cluster.image,
            "imagePullPolicy": self.cluster.pull_policy,
            "env": environment,
            "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
            "resources": {"requests": resources, "limits": resources},
            "securityContext": self.container_security(),
            "volumeMounts": mounts,
            "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", stop]}}},
        }

    def _pod(
        self, container: dict[str, Any], placement: Placement, memory_gib: int
    ) -> dict[str, Any]:
        cluster = self.cluster
        shm = {"medium": "Memory", "sizeLimit": f"{int(memory_gib * _SHM_SHARE * 1024)}Mi"}
        volumes: list[dict[str, Any]] = [
            {"name": "shm", "emptyDir": shm},
            {"name": "ray", "emptyDir": {}},  # logs and what is spilled
        ]
        if cluster.storage.claim is not None:
            claim = {"claimName": cluster.storage.claim}
            volumes.append({"name": "storage", "persistentVolumeClaim": claim})
        if self.config_map is not None:
            volumes.append({"name": "recipe", "configMap": {"name": self.config_map}})
        spec: dict[str, Any] = {
            "containers": [container],
            "volumes": volumes,
            "terminationGracePeriodSeconds": self.drain_seconds + _STOP_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": cluster.user,
                "runAsGroup": cluster.user,
                "fsGroup": cluster.user,
                "fsGroupChangePolicy": "OnRootMismatch",  # a shared disk has millions of files
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        if cluster.service_account is not None:
            spec["serviceAccountName"] = cluster.service_account
        if cluster.pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
        if self.priority is not None:
            spec["priorityClassName"] = self.priority.class_name
        if placement.node_selector:
            spec["nodeSelector"] = placement.node_selector
        if placement.tolerations:
            spec["tolerations"] = [
                toleration.model_dump(exclude_none=True)
                | {"operator": "Exists" if toleration.value is None else "Equal"}
                for toleration in placement.tolerations
            ]
        return {"spec": spec}


def _secret(secret: str, name: str, must: bool) -> dict[str, Any]:
    reference = {"name": secret, "key": name} | ({} if must else {"optional": True})
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}
