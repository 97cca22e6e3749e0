"""KubeRay's objects: what the operator and Ray's autoscaler read in them."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd import Crd
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from tried import GOLDEN, ROOT, kubernetes, recipe
from typer.testing import CliRunner

from jobs.cli import main as cli
from jobs.render import WHAT, render, written
from serve.deploy_config import deploy_config
from stagebeam.cluster.demands import WANDB_KEY
from stagebeam.cluster.kuberay import name_of, ray_cluster, ray_job, ray_service
from stagebeam.cluster.pods import RECIPE_PATH
from stagebeam.recipe import Recipe, load_recipe
from stagebeam.tracking import KEY_VARIABLE

SHIPPED = (ROOT / "cluster" / "kuberay", ROOT / "cluster" / "ray-up", GOLDEN)
MADE = sorted(
    file for folder in SHIPPED for file in folder.glob("*.yaml") if "given-" not in file.name
)
MANIFESTS = [file for file in MADE if file.parent.name != "ray-up"]


def ray_object(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in documents if each["apiVersion"] == "ray.io/v1")
    return found


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec of the Ray cluster in an object of any kind."""
    spec = manifest["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def service(of: Recipe, **settings: Any) -> dict[str, Any]:
    return ray_object(ray_service(of, kubernetes(**settings), deploy_config(of, RECIPE_PATH)))


def variables(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of the head, after a look that every worker has the same."""
    spec = cluster_of(manifest)
    templates = [spec["headGroupSpec"]["template"]]
    templates += [group["template"] for group in spec["workerGroupSpecs"]]
    found = [t["spec"]["containers"][0]["env"] for t in templates]
    assert all(each == found[0] for each in found)
    return {each["name"]: each for each in found[0]}


@pytest.mark.parametrize("file", MADE, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_file_is_what_its_first_line_makes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wanted change, run those lines: `grep -rh '^# Made by: ' cluster tests/cluster |
    cut -c12- | sh`."""
    monkeypatch.chdir(ROOT)
    text = file.read_text(encoding="utf-8")
    said, words = text.splitlines()[0].split(": ", 1)
    assert said == "# Made by"
    given = shlex.split(words)
    assert given[:2] == ["stagebeam", "render"]
    options = dict(zip(given[3::2], given[4::2], strict=True))
    assert options["--output"] == str(file.relative_to(ROOT))
    (what,) = (each for each in WHAT if each == options["--what"])
    cluster, output = Path(options["--cluster"]), Path(options["--output"])
    assert written(Path(given[2]), cluster, what, output, options.get("--url")) == text


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_manifests_are_what_the_published_schemas_take(file: Path, crds: dict[str, Crd]) -> None:
    manifest = ray_object(list(yaml.safe_load_all(file.read_text(encoding="utf-8"))))
    assert crds[manifest["kind"]].faults(manifest) == []


def test_the_schemas_refuse_what_an_api_server_refuses(crds: dict[str, Crd]) -> None:
    """Else the test above would promise nothing."""
    made = ray_object(ray_job("train", recipe(), kubernetes()))
    schema = crds["RayJob"]

    def broken(change: Any) -> list[str]:
        manifest = copy.deepcopy(made)
        change(manifest["spec"])
        return schema.faults(manifest)

    def container(spec: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        return found["containers"][0]  # type: ignore[no-any-return]

    assert broken(lambda spec: None) == []
    assert broken(lambda spec: spec.update(backOffLimit=1))
    assert broken(lambda spec: spec.update(backoffLimit=2**31))
    assert broken(lambda spec: spec.update(entrypoint=["python"]))
    assert broken(lambda spec: spec["rayClusterSpec"].pop("headGroupSpec"))
    assert broken(lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="on"))
    assert broken(lambda spec: container(spec).update(enviroment=[]))
    assert broken(lambda spec: container(spec)["ports"].append(container(spec)["ports"][0]))
    assert broken(lambda spec: container(spec)["resources"]["limits"].update(cpu={}))
    assert broken(
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(a=1)
    )


def test_rays_autoscaler_reads_the_sizes_that_the_recipe_asks_for() -> None:
    tried = recipe(train={"output_dir": "/data/train", "num_workers": 12, "global_batch_size": 24})
    manifest = ray_object(ray_cluster(tried, kubernetes()))
    types = _derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]
    shapes = {
        name: (
            t["resources"]["CPU"],
            t["resources"].get("GPU", 0),
            t["min_workers"],
            t["max_workers"],
        )
        for name, t in types.items()
    }
    assert shapes == {
        "headgroup": (0, 0, 0, 0),
        "cpu": (8, 0, 0, 4),
        "train": (48, 6, 0, 2),
        "generator": (8, 1, 0, 2),
        "judge": (8, 1, 0, 2),
    }


def test_a_jobs_workers_are_there_together_and_go_with_it() -> None:
    tried = recipe(train={"output_dir": "/data/train", "num_workers": 16})
    spec = ray_object(ray_job("train", tried, kubernetes()))["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["entrypointNumCpus"] == 1
    assert spec["entrypoint"] == f"python -m jobs.train {RECIPE_PATH}"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)


def test_sidecar_submission_has_nothing_that_the_operator_refuses_beside_it() -> None:
    spec = ray_object(ray_job("prepare", recipe(), kubernetes()))["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert {"submitterPodTemplate", "submitterConfig", "clusterSelector"}.isdisjoint(spec)
    templates = [spec["rayClusterSpec"]["headGroupSpec"]["template"]]
    templates += [g["template"] for g in spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert all("restartPolicy" not in template["spec"] for template in templates)


def test_an_evaluation_asks_from_the_head_where_the_proxy_is() -> None:
    own = ray_object(ray_job("evaluate", recipe(), kubernetes()))["spec"]
    assert "entrypointNumCpus" not in own
    assert {g["groupName"] for g in own["rayClusterSpec"]["workerGroupSpecs"]} == {
        "generator",
        "judge",
        "cpu",
    }
    url = "http://tried-serve-serve-svc:8000"
    asking = ray_object(ray_job("evaluate", recipe(), kubernetes(), "--url", url))["spec"]
    assert asking["entrypoint"] == f"python -m jobs.evaluate {RECIPE_PATH} --url {url}"
    assert asking["rayClusterSpec"]["workerGroupSpecs"] == []


def test_the_recipe_in_the_manifest_is_the_recipe(tmp_path: Path) -> None:
    for file in (GOLDEN / "given-recipe.yaml", *sorted((ROOT / "jobs" / "recipes").glob("*1n8g*"))):
        given = load_recipe(file)
        config_map = next(
            d for d in ray_job("train", given, shared(given)) if d["kind"] == "ConfigMap"
        )
        copied = tmp_path / "recipe.yaml"
        copied.write_text(config_map["data"]["recipe.yaml"], encoding="utf-8")
        assert load_recipe(copied) == given


def shared(of: Recipe) -> Any:
    """A cluster that has the recipe's folders."""
    place = "/data" if str(of.data.shards).startswith("/data") else "/mnt/shared"
    return kubernetes(storage={"claim": "data", "mount_path": place})


def test_another_recipe_is_another_cluster_of_the_service() -> None:
    """The pods name the recipe's file by its content, so that KubeRay sees the change."""
    one, same = service(recipe()), service(recipe())
    other = service(recipe(search={"candidates": 3}))
    assert one == same and one["metadata"]["name"] == other["metadata"]["name"]
    assert cluster_of(one) != cluster_of(other)


def test_answers_under_way_have_their_time_when_pods_or_clusters_go() -> None:
    serve = {**recipe().model_dump(mode="json")["serve"], "drain_seconds": 299.5}
    spec = service(recipe(serve=serve))["spec"]
    assert spec["rayClusterDeletionDelaySeconds"] == 300
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == 360
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[-1] == "sleep 300; ray stop"
    job = cluster_of(ray_object(ray_job("train", recipe(), kubernetes())))
    assert "sleep" not in str(job)


def test_serve_takes_the_config_that_goes_along() -> None:
    """KubeRay hands it to Serve as it is."""
    from ray.serve.schema import ServeDeploySchema

    taken = ServeDeploySchema.model_validate(
        yaml.safe_load(service(recipe())["spec"]["serveConfigV2"])
    )
    (application,) = taken.applications
    assert application.args == {"recipe": RECIPE_PATH}
    spec = cluster_of(service(recipe()))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        ports = group["template"]["spec"]["containers"][0]["ports"]
        assert {"name": "serve", "containerPort": taken.http_options.port} in ports


def test_keys_are_named_and_never_held() -> None:
    serve = {**recipe().model_dump(mode="json")["serve"], "keys": {"env": ["OUR_KEY"]}}
    tried = recipe(serve=serve)
    found = variables(service(tried, keys_secret="keys", secret_environment=["HF_TOKEN"]))
    assert found == {
        name: {"name": name, "valueFrom": {"secretKeyRef": {"name": "keys", "key": name}}}
        for name in ("HF_TOKEN", "OUR_KEY")
    }
    with pytest.raises(ValueError, match=r"^The recipe needs OUR_KEY: name the Secret .*\.$"):
        service(tried)


def test_training_may_do_without_a_tracking_key() -> None:
    assert WANDB_KEY == KEY_VARIABLE

    def key(**tracking: Any) -> dict[str, Any] | None:
        job = ray_job("train", recipe(tracking=tracking), kubernetes(keys_secret="keys"))
        found = variables(ray_object(job)).get(WANDB_KEY)
        return found and found["valueFrom"]["secretKeyRef"]

    assert key() == {"name": "keys", "key": WANDB_KEY, "optional": True}
    assert key(mode="online") == {"name": "keys", "key": WANDB_KEY}
    assert key(enabled=False) is None


def test_no_pod_runs_as_root_or_may_become_it() -> None:
    for documents in (
        ray_job("train", recipe(), kubernetes()),
        ray_cluster(recipe(), kubernetes()),
    ):
        spec = cluster_of(ray_object(documents))
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
                assert 10001 not in [p["containerPort"] for p in container["ports"]]


def test_the_head_takes_no_work() -> None:
    for what in WHAT:
        documents = render(GOLDEN / "given-recipe.yaml", GOLDEN / "given-cluster.yaml", what)
        head = cluster_of(ray_object(documents))["headGroupSpec"]
        assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


@pytest.mark.parametrize("token", [True, False])
def test_authentication_is_always_said(token: bool) -> None:
    spec = cluster_of(ray_object(ray_job("train", recipe(), kubernetes(token_auth=token))))
    assert spec["authOptions"] == {"mode": "token" if token else "disabled"}
    assert spec["rayVersion"]


def test_without_the_autoscaler_all_workers_are_there_from_the_start() -> None:
    manifest = service(recipe(), autoscaler={"enabled": False})
    spec = cluster_of(manifest)
    assert not spec["enableInTreeAutoscaling"] and "autoscalerOptions" not in spec
    assert {g["groupName"]: g["replicas"] for g in spec["workerGroupSpecs"]} == {
        "generator": 2,
        "judge": 2,
        "cpu": 1,
    }
    assert all(g["replicas"] == g["minReplicas"] for g in spec["workerGroupSpecs"])


def test_kueue_is_told_the_queue_and_what_may_change_its_size() -> None:
    fixed = {"kueue": {"queue": "team"}, "autoscaler": {"enabled": False}}
    metadata = ray_object(ray_job("train", recipe(), kubernetes(**fixed)))["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "annotations" not in metadata
    elastic = {"kueue": {"queue": "team", "elastic": True}}
    metadata = ray_object(ray_job("train", recipe(), kubernetes(**elastic)))["metadata"]
    assert metadata["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


def test_a_priority_class_is_written_out_where_it_has_a_value() -> None:
    class_ = {"class_name": "low", "value": 10, "preempts": False}
    documents = ray_job("train", recipe(), kubernetes(job_priority=class_))
    assert documents[0] == {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "low"},
        "value": 10,
        "preemptionPolicy": "Never",
    }
    spec = cluster_of(ray_object(documents))
    assert spec["headGroupSpec"]["template"]["spec"]["priorityClassName"] == "low"
    there = ray_job("train", recipe(), kubernetes(job_priority={"class_name": "low"}))
    assert [d["kind"] for d in there] == ["ConfigMap", "RayJob"]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("LLaVA-o1 / 11B", "llava-o1-11b-train"),
        ("3.2", "run-3-2-train"),
        ("x" * 60, f"{'x' * 40}-"),
        ("???", "run-train"),
    ],
)
def test_names_are_what_kuberay_takes(name: str, made: str) -> None:
    found = name_of(recipe(name=name), "train")
    assert found.startswith(made) and len(found) <= 47


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_broken_recipe_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nmodel: {path: m}\ndata: {shard: /data}\n")
    given = (
        "render",
        str(broken),
        "--what",
        "train",
        "--cluster",
        str(GOLDEN / "given-cluster.yaml"),
    )
    failed = CliRunner().invoke(cli, given)
    assert failed.exit_code == 2
    assert failed.output == (
        f"error: The recipe {broken} is wrong: 'data.shards' is missing; "
        "unknown key 'data.shard'.\n"
    )
