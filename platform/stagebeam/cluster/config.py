"""What a cluster file says: machines, storage, names of secrets. How much of it a run takes follows
from its recipe (`sizing.py`); keys and tokens never stand in either.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from stagebeam.recipe import describe, read_settings
from stagebeam.schema import PositiveInt, Section

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
_SECRET = re.compile(r"(^|_)(API_?KEY|KEY|SECRET|TOKEN|PASSWORD|CREDENTIALS?)(_|$)", re.IGNORECASE)

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Storage(Section):
    """Where every node finds what a recipe names: shards, checkpoints, models, traces."""

    mount_path: str | None = Field(
        None, pattern=r"^/.+", description="Folder at which each node has the shared file system."
    )
    urls: tuple[str, ...] = Field(
        (), description="Object stores that recipes may name, such as `s3://bucket`."
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.mount_path is None and not self.urls:
            raise ValueError("storage needs a mount_path, urls or both")
        for url in self.urls:
            if not _URL.match(url):
                raise ValueError(f"{url!r} is not a URL")
        return self

    def holds(self, path: str) -> bool:
        """Whether every node finds this path."""
        if self.mount_path is not None and Path(path).is_relative_to(self.mount_path):
            return True
        return any(f"{_url(path)}/".startswith(f"{_url(url)}/") for url in self.urls)


class Claimed(Storage):
    """Storage of Kubernetes pods."""

    claim: Name | None = Field(
        None, description="PersistentVolumeClaim (ReadWriteMany) that is mounted at `mount_path`."
    )

    @model_validator(mode="after")
    def _mounted(self) -> Self:
        if (self.claim is None) != (self.mount_path is None):
            raise ValueError("a claim needs a mount_path, and a mount_path a claim")
        return self


class Head(Section):
    """The node of Ray's control processes. It takes no work."""

    cpus: PositiveInt = Field(4, description="CPU cores.")
    memory_gib: PositiveInt = Field(16, description="Memory, GiB.")


class Nodes(Section):
    """Workers of one kind: what one of them has, and how many there may be."""

    cpus: PositiveInt = Field(description="CPU cores of one that work may take.")
    memory_gib: PositiveInt = Field(description="Memory of one that work may take, GiB.")
    max_nodes: PositiveInt = Field(description="Most of them at a time.")


class GpuNodes(Nodes):
    """Workers with GPUs."""

    gpus: PositiveInt = Field(8, description="GPUs of one.")


class Base(Section):
    """What all kinds of clusters have."""

    image: str = Field(min_length=1, description="Container image, made from cluster/image.")
    environment: dict[Variable, str] = Field(
        {}, description="Variables of every node. Keys have no place here."
    )
    token_auth: bool = Field(
        True, description="Whether Ray asks its clients and nodes for a token (RAY_AUTH_MODE)."
    )

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if _SECRET.search(name) and not value.startswith("/"):  # a path is no key
                raise ValueError(f"{name} sounds like a secret; this file is no place for one")
        return environment


class Toleration(Section):
    """Of a taint that keeps other pods off a node."""

    key: str = Field(min_length=1, description="The taint's key.")
    value: str | None = Field(None, description="Its value; left out, any.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Its effect; left out, any."
    )


class Placement(Section):
    """On which Kubernetes nodes pods may be."""

    node_selector: dict[str, str] = Field({}, description="Labels that a node must have.")
    tolerations: tuple[Toleration, ...] = Field((), description="Taints that do not matter.")


class KubeHead(Head, Placement):
    """The head's pod."""


class KubeNodes(Nodes, Placement):
    """Pods without GPUs; each has all that is said here."""


class KubeGpuNodes(GpuNodes, Placement):
    """Kubernetes nodes with GPUs. A pod that takes some of a node's GPUs takes as large a share of
    its cores and memory."""

    resource: str = Field("nvidia.com/gpu", description="What Kubernetes calls a GPU.")
    devices: dict[str, PositiveInt] = Field(
        {},
        description="Network devices of one, shared by GPUs among pods that train together; by "
        "Kubernetes' names: {rdma/hca: 8}, {vpc.amazonaws.com/efa: 32}.",
    )


class Autoscaler(Section):
    """Ray's autoscaler, which adds and removes pods. Without it all are there from the start."""

    enabled: bool = Field(True, description="Whether it runs.")
    idle_seconds: PositiveInt = Field(300, description="A worker that idles so long goes, seconds.")
    upscaling: Literal["Default", "Aggressive", "Conservative"] = Field(
        "Default", description="How fast workers are added."
    )


class Priority(Section):
    """Which pods stay when there is not room for all."""

    class_name: Name = Field(description="PriorityClass of Kubernetes.")
    value: int | None = Field(
        None,
        le=1_000_000_000,
        description="Its rank. If given, the class is written out too; else it is there already.",
    )
    preempts: bool = Field(True, description="Whether pods of lower rank make room; with `value`.")


class Kueue(Section):
    """Admission by Kueue."""

    queue: Name = Field(description="LocalQueue of the namespace.")
    priority_class: Name | None = Field(None, description="WorkloadPriorityClass.")
    elastic: bool = Field(
        False,
        description="Kueue follows Ray's autoscaler (its feature gate ElasticJobsViaWorkloadSlices)"
        "; otherwise it admits what does not change its size.",
    )


class Redis(Section):
    """Where the head keeps its state, so that workers outlive the loss of it."""

    address: str = Field(min_length=1, description="Host and port, such as `redis:6379`.")
    password_secret: Name | None = Field(None, description="Secret with the password.")
    password_key: str = Field("password", description="Its key in that Secret.")


class Jobs(Section):
    """How a RayJob is submitted and ends."""

    submission: Literal["SidecarMode", "K8sJobMode", "HTTPMode"] = Field(
        "SidecarMode",
        description="Who submits: a container beside the head, a Kubernetes Job, the operator.",
    )
    driver_cpus: PositiveInt = Field(1, description="CPU cores that the job's driver takes.")
    retries: int = Field(2, ge=0, description="Further tries, each on a new cluster.")
    deadline_seconds: PositiveInt | None = Field(
        None, description="Longest that a job may take, start and retries included, seconds."
    )
    keep_seconds: int = Field(600, ge=0, description="How long its cluster stays, seconds.")


class Incremental(Section):
    """An upgrade in steps, on Kubernetes' Gateway API."""

    gateway_class: Name = Field(description="GatewayClass of the namespace's gateways.")
    step_percent: PositiveInt = Field(10, le=100, description="Traffic moved in a step, percent.")
    interval_seconds: PositiveInt = Field(30, description="Between two steps, seconds.")
    surge_percent: PositiveInt = Field(
        100, le=100, description="Most of the new cluster beside a whole old one, percent."
    )


class Service(Section):
    """How a RayService starts and is changed."""

    upgrade: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] = Field(
        "NewCluster",
        description="What a changed recipe or image does: a second cluster takes over when it is "
        "ready, or step by step, or nothing.",
    )
    incremental: Incremental | None = Field(None, description="Of an upgrade in steps.")
    start_seconds: PositiveInt = Field(
        1800, description="Longest until all replicas have their models, seconds."
    )
    old_cluster_seconds: int = Field(
        60,
        ge=0,
        description="How long the cluster before an upgrade still stays, seconds; at least the "
        "recipe's drain_seconds.",
    )
    redis: Redis | None = Field(None, description="Where the head's state is kept.")

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if (self.incremental is None) == (self.upgrade == "NewClusterWithIncrementalUpgrade"):
            raise ValueError("NewClusterWithIncrementalUpgrade needs incremental, others have none")
        return self


class KubernetesCluster(Base):
    """A Kubernetes cluster with the KubeRay operator."""

    namespace: Name = Field("default", description="Namespace of everything that is rendered.")
    service_account: Name | None = Field(None, description="ServiceAccount of the pods.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When the image is pulled."
    )
    pull_secrets: tuple[Name, ...] = Field((), description="Secrets of the image's registry.")
    token_secret: Name | None = Field(
        None, description="Secret with Ray's token as `auth_token`; left out, KubeRay makes one."
    )
    keys_secret: Name | None = Field(
        None, description="Secret that holds each key under the name of its variable."
    )
    secret_environment: tuple[Variable, ...] = Field(
        (), description="Variables from it that no recipe names: HF_TOKEN, AWS_ACCESS_KEY_ID."
    )
    storage: Claimed
    head: KubeHead = Field(default_factory=KubeHead)
    cpu: KubeNodes
    gpu: KubeGpuNodes | None = Field(None, description="None: the cluster has no GPUs.")
    user: PositiveInt = Field(1000, description="Number of the image's user, and of its group.")
    autoscaler: Autoscaler = Field(default_factory=Autoscaler)
    job_priority: Priority | None = Field(None, description="Of jobs and of a standing cluster.")
    service_priority: Priority | None = Field(None, description="Of serving.")
    kueue: Kueue | None = Field(None, description="Left out, nothing waits in a queue.")
    jobs: Jobs = Field(default_factory=Jobs)
    service: Service = Field(default_factory=Service)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.kueue and self.autoscaler.enabled and not self.kueue.elastic:
            raise ValueError(
                "under kueue, set autoscaler.enabled to false or kueue.elastic to true"
            )
        if self.service.incremental and not self.autoscaler.enabled:
            raise ValueError("an upgrade in steps needs the autoscaler")
        if self.secret_environment and self.keys_secret is None:
            raise ValueError("secret_environment needs keys_secret")
        if self.jobs.driver_cpus > self.cpu.cpus:
            raise ValueError("jobs.driver_cpus is more than cpu.cpus")
        if self.token_secret is not None and not self.token_auth:
            raise ValueError("token_secret needs token_auth")
        return self


class Machines(Base):
    """A cluster that `ray up` starts over SSH, in containers."""

    cluster_name: Name = Field("stagebeam", description="Name of the cluster.")
    ssh_user: str = Field(min_length=1, description="User on the machines, who may run docker.")
    ssh_key: str | None = Field(None, description="File of the private key; else Ray makes one.")
    setup: tuple[str, ...] = Field(
        (), description="Commands before the container starts, such as to mount the storage."
    )
    env_file: str | None = Field(
        None, pattern=r"^/", description="File on each machine with keys, a NAME=value a line."
    )
    storage: Storage


class Instances(Section):
    """What AWS is asked for."""

    instance: str = Field(min_length=1, description="Instance type, such as p5.48xlarge.")
    disk_gib: PositiveInt = Field(200, description="Root disk, GiB.")


class AwsHead(Head, Instances):
    """The head's instance."""


class AwsNodes(Nodes, Instances):
    """Workers without GPUs."""

    spot: bool = Field(False, description="Whether they may be taken away, for a lower price.")


class AwsGpuNodes(GpuNodes, Instances):
    """Workers with GPUs."""

    spot: bool = Field(False, description="Whether they may be taken away, for a lower price.")


class AwsCluster(Machines):
    """Instances of AWS EC2."""

    region: str = Field(min_length=1, description="Such as us-east-1.")
    zones: tuple[str, ...] = Field(
        min_length=1, description="Availability zones, the first one first."
    )
    machine_image: str = Field(min_length=1, description="AMI with Docker and NVIDIA's runtime.")
    instance_profile: str | None = Field(
        None, description="ARN of what the machines may do in AWS, such as read a bucket."
    )
    subnets: tuple[str, ...] = Field((), description="Subnets; else Ray takes the default ones.")
    security_groups: tuple[str, ...] = Field((), description="Else Ray makes one, open for SSH.")
    idle_minutes: PositiveInt = Field(10, description="A worker that idles so long goes, minutes.")
    head: AwsHead
    cpu: AwsNodes
    gpu: AwsGpuNodes | None = Field(None, description="None: the cluster has no GPUs.")


class Hosts(Section):
    """Machines that are there, all of one kind."""

    hosts: tuple[str, ...] = Field(min_length=1, description="Names or addresses of the workers.")
    cpus: PositiveInt = Field(description="CPU cores of one that work may take.")
    memory_gib: PositiveInt = Field(description="Memory of one that work may take, GiB.")
    gpus: int = Field(0, ge=0, description="GPUs of one.")

    @property
    def max_nodes(self) -> int:
        """All of them."""
        return len(self.hosts)


class OnPremisesCluster(Machines):
    """Machines of your own."""

    head_host: str = Field(min_length=1, description="Name or address of the head.")
    workers: Hosts


AnyCluster = KubernetesCluster | AwsCluster | OnPremisesCluster
_KINDS: dict[str, type[AnyCluster]] = {
    "kubernetes": KubernetesCluster,
    "aws": AwsCluster,
    "on_premises": OnPremisesCluster,
}


def load_cluster(path: str | Path) -> AnyCluster:
    """Read a cluster file; its key `kind` says which of the three it is, and `extends` may name
    another file as in recipes.

    Raises ValueError with one sentence that names the file, the field and what is wrong.
    """
    path = Path(path)
    settings = read_settings(path, "cluster")
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        kinds = ", ".join(_KINDS)
        raise ValueError(f"The cluster {path} is wrong: its kind must be one of {kinds}.")
    try:
        return _KINDS[kind].model_validate(settings)
    except ValidationError as error:
        what = describe(error, "cluster")
        raise ValueError(f"The cluster {path} is wrong: {what}.") from None


def _url(text: str) -> str:
    """A path object has one slash where the URL had two."""
    return re.sub(r":/+", ":/", text, count=1).rstrip("/")
