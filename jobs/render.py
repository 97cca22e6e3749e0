"""Write what a cluster needs to run a recipe: `python -m jobs.render RECIPE --what WORK`.

For Kubernetes the objects of KubeRay, for AWS and machines of your own the file of `ray up`. How
many workers there are, and of which size, follows from the recipe (docs/clusters.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
import yaml

from jobs.errors import run_job
from stagebeam.cluster.config import KubernetesCluster, load_cluster
from stagebeam.cluster.kuberay import ray_cluster, ray_job, ray_service
from stagebeam.cluster.pods import RECIPE_PATH
from stagebeam.cluster.ray_up import ray_up
from stagebeam.recipe import load_recipe

# The work of a recipe, or a standing cluster for all of it.
What = Literal["cluster", "prepare", "annotate", "train", "evaluate", "serve"]
WHAT: tuple[What, ...] = get_args(What)


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it is, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def render(
    recipe: Path, cluster: Path, what: What, flags: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The documents of one file.

    Raises ValueError where the recipe has no such section, or asks for what the cluster lacks.
    """
    loaded, found = load_recipe(recipe), load_cluster(cluster)
    if not isinstance(found, KubernetesCluster):
        if what != "cluster":
            raise ValueError(
                f"{cluster} is for `ray up`, which starts a cluster and no job: render "
                "--what cluster, then use `ray job submit`."
            )
        return [ray_up(loaded, found)]
    if what == "cluster":
        return ray_cluster(loaded, found)
    if what == "serve":
        # imported here: Ray Serve takes its seconds
        from serve.deploy_config import deploy_config

        return ray_service(loaded, found, deploy_config(loaded, RECIPE_PATH))
    return ray_job(what, loaded, found, *flags)


def written(
    recipe: Path, cluster: Path, what: What, output: Path | None = None, url: str | None = None
) -> str:
    """The file's text, which begins with the command that makes it. Raises ValueError as `render`
    does."""
    flags = () if url is None else ("--url", url)
    command = ["stagebeam", "render", str(recipe), "--what", what, "--cluster", str(cluster)]
    command += [*flags, *(() if output is None else ("--output", str(output)))]
    documents = render(recipe, cluster, what, flags)
    made = f"# Made by: {shlex.join(command)}\n"
    return made + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)


def main(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    what: Annotated[What, typer.Option(help="A standing cluster, a job on its own, or serving.")],
    cluster: Annotated[
        Path, typer.Option(help="Cluster file: machines, storage, names of secrets.")
    ] = Path("cluster/kubernetes.yaml"),
    output: Annotated[Path | None, typer.Option(help="File to write; else print.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Of an evaluation: the service to ask; else it serves.")
    ] = None,
) -> None:
    """Write what a cluster needs to run a recipe."""

    def job() -> None:
        if url is not None and what != "evaluate":
            raise ValueError("--url is for --what evaluate.")
        text = written(recipe, cluster, what, output, url)
        if output is None:
            print(text, end="")
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(text, encoding="utf-8")

    run_job(job)


if __name__ == "__main__":
    typer.run(main)
