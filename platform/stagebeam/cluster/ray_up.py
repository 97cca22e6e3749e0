"""Files for `ray up`: a cluster of AWS instances, or of machines that are there.

Every machine runs one container. The token that Ray asks for (RAY_AUTH_MODE) is copied from the
home of whoever calls `ray up` to the same place on every machine.
"""

from __future__ import annotations

from typing import Any

from stagebeam.cluster.config import (
    AwsCluster,
    AwsGpuNodes,
    AwsNodes,
    Instances,
    OnPremisesCluster,
)
from stagebeam.cluster.config import Machines as Reached
from stagebeam.cluster.demands import check_paths
from stagebeam.cluster.sizing import Machines, groups, machines_with_gpus, possible, standing_groups
from stagebeam.recipe import Recipe

_TOKEN = "~/.ray/auth_token"
_PORT = 6379
_HEAD, _CPU, _GPU = "head", "cpu", "gpu"


def ray_up(recipe: Recipe, cluster: AwsCluster | OnPremisesCluster) -> dict[str, Any]:
    """A cluster that takes all work of a recipe, one after the other.

    Raises ValueError where the recipe asks for what the machines do not have.
    """
    for work in possible(recipe):
        check_paths(work, recipe, cluster.storage)
    if isinstance(cluster, AwsCluster):
        return _common(cluster) | _aws(recipe, cluster)
    standing_groups(recipe, Machines(cluster.workers, cluster.workers))  # it fits
    return _common(cluster) | _on_premises(cluster)


def _common(cluster: Reached) -> dict[str, Any]:
    auth = {"ssh_user": cluster.ssh_user}
    if cluster.ssh_key is not None:
        auth["ssh_private_key"] = cluster.ssh_key
    options = ["--ulimit nofile=65536:65536", "--ulimit memlock=-1:-1"]
    # what NVIDIA's runtime looks for, where Ray finds it; the image itself asks for no GPU
    options += [
        "--env NVIDIA_VISIBLE_DEVICES=all",
        "--env NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]
    options += [f"--env {name}={value}" for name, value in cluster.environment.items()]
    if cluster.env_file is not None:
        options.append(f"--env-file {cluster.env_file}")
    if (folder := cluster.storage.mount_path) is not None:
        options.append(f"--volume {folder}:{folder}")
    mode = "token" if cluster.token_auth else "disabled"
    start = f"ulimit -n 65536; RAY_AUTH_MODE={mode} ray start"
    return {
        "cluster_name": cluster.cluster_name,
        "auth": auth,
        "docker": {
            "image": cluster.image,
            "container_name": "stagebeam",
            "pull_before_run": True,
            "run_options": options,
        },
        "initialization_commands": list(cluster.setup),
        "setup_commands": [],  # the image has everything
        "file_mounts": {_TOKEN: _TOKEN} if cluster.token_auth else {},
        # The dashboard, which takes jobs, listens to its own machine alone: `ray dashboard FILE`
        # makes a way to it through SSH.
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --num-cpus=0 --num-gpus=0 --port={_PORT} "
            "--dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{start} --address=$RAY_HEAD_IP:{_PORT}",
        ],
    }


def _aws(recipe: Recipe, cluster: AwsCluster) -> dict[str, Any]:
    machines = Machines(cluster.cpu, cluster.gpu)
    most_cpu = most_gpu = 0
    for work in possible(recipe):
        found = groups(work, recipe, machines)
        most_cpu = max(most_cpu, sum(group.most for group in found if not group.gpus))
        if cluster.gpu is not None:
            most_gpu = max(most_gpu, machines_with_gpus(found, cluster.gpu.gpus))
    types: dict[str, Any] = {
        _HEAD: {"resources": {"CPU": 0}, "node_config": _node(cluster, cluster.head)}
    }
    if most_cpu:
        types[_CPU] = _workers(cluster, cluster.cpu, most_cpu)
    if most_gpu and cluster.gpu is not None:
        types[_GPU] = _workers(cluster, cluster.gpu, most_gpu)
    return {
        "provider": {
            "type": "aws",
            "region": cluster.region,
            "availability_zone": ",".join(cluster.zones),
            "cache_stopped_nodes": False,
        },
        "max_workers": most_cpu + most_gpu,
        "idle_timeout_minutes": cluster.idle_minutes,
        # what the head starts and stops instances with
        "head_setup_commands": ["python -c 'import boto3' || python -m pip install -q boto3"],
        "head_node_type": _HEAD,
        "available_node_types": types,
    }


def _workers(cluster: AwsCluster, nodes: AwsNodes | AwsGpuNodes, most: int) -> dict[str, Any]:
    resources = {"CPU": nodes.cpus, "memory": nodes.memory_gib << 30}
    if isinstance(nodes, AwsGpuNodes):
        resources["GPU"] = nodes.gpus
    config = _node(cluster, nodes)
    if nodes.spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    return {"resources": resources, "min_workers": 0, "max_workers": most, "node_config": config}


def _node(cluster: AwsCluster, instances: Instances) -> dict[str, Any]:
    disk = {"VolumeSize": instances.disk_gib, "VolumeType": "gp3", "Encrypted": True}
    config: dict[str, Any] = {
        "InstanceType": instances.instance,
        "ImageId": cluster.machine_image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        # what runs in a container cannot ask for the machine's rights in AWS by a stray request
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }
    if cluster.subnets:
        config["SubnetIds"] = list(cluster.subnets)
    if cluster.security_groups:
        config["SecurityGroupIds"] = list(cluster.security_groups)
    if cluster.instance_profile is not None:
        config["IamInstanceProfile"] = {"Arn": cluster.instance_profile}
    return config


def _on_premises(cluster: OnPremisesCluster) -> dict[str, Any]:
    hosts = cluster.workers.hosts
    return {
        "provider": {
            "type": "local",
            "head_ip": cluster.head_host,
            "worker_ips": list(hosts),
        },
        "max_workers": len(hosts),
    }
