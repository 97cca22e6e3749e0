"""The container file, read as a builder reads it; there is none here to run it."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence

import pytest
from tried import ROOT

from stagebeam.cluster.config import KubernetesCluster

IMAGE = ROOT / "cluster" / "image"
KNOWN = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its text on one line; comments are left out."""
    lines = (IMAGE / "Containerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    whole = re.sub(r"\\\n", " ", text).splitlines()
    found = [line.split(maxsplit=1) for line in whole if line.strip()]
    return [(name, rest) for name, rest in found]


def of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_every_instruction_is_one_that_a_builder_knows() -> None:
    assert {name for name, _ in instructions()} <= KNOWN
    assert len(of("FROM")) == len(of("USER")) == 1


@pytest.mark.parametrize("script", of("RUN"))
def test_scripts_are_shell(script: str) -> None:
    checked = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_everything_that_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored = (IMAGE / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in ignored if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    for line in of("COPY"):
        *sources, _target = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == rule or source.startswith(f"{rule}/") for rule in let_in), source
    assert not any(fnmatch.fnmatch(".git", rule) or ".venv" in rule for rule in let_in)


def test_all_that_runs_in_a_pod_is_in_the_image() -> None:
    """The lists of what is installed and of what is copied are both written by hand."""
    copied = {source for line in of("COPY") for source in shlex.split(line)[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    roots = {"stagebeam": "platform", "jobs": "jobs", "serve": "serve"}
    wanted = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {roots[name.rstrip("*")] for name in wanted} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_it_runs_as_a_user_that_pods_name() -> None:
    (user,) = of("USER")
    default = KubernetesCluster.model_fields["user"].default
    assert user == f"{default}:{default}" != "0:0"
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert any(f"--uid {default}" in script for script in of("RUN"))


def test_packages_come_from_the_lock() -> None:
    installs = [part for s in of("RUN") for part in s.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in part for part in installs)


def test_it_holds_no_secret() -> None:
    text = "\n".join([*of("ARG"), *of("ENV"), *of("RUN")])
    assert not re.search(r"(KEY|TOKEN|SECRET|PASSWORD)\s*=", text, re.IGNORECASE)


def test_the_default_command_is_the_projects() -> None:
    (command,) = of("CMD")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert json.loads(command)[0] in project["project"]["scripts"]


def test_both_variants_are_known_and_others_refused() -> None:
    (check,) = (s for s in of("RUN") if s.startswith("case"))
    test = check.split("&&")[0]

    def answer(variant: str) -> int:
        return subprocess.run(["sh", "-c", test], env={"VARIANT": variant}).returncode

    assert (answer("cpu"), answer("cuda"), answer("rocm")) == (0, 0, 1)


@pytest.mark.parametrize("extras", [(), ("vllm",)])
def test_dependencies_are_the_projects(extras: Sequence[str]) -> None:
    program = [sys.executable, str(IMAGE / "dependencies.py"), str(ROOT / "pyproject.toml")]
    said = subprocess.run([*program, *extras], capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    assert said.splitlines() == wanted
    assert all("==" in line for line in wanted)
