"""How the house is built: what may import what, and that the sources' folder hides nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("platform", "jobs", "serve", "tests")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run from the repository root, with the two source roots on the path."""
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_pythons_own_platform_module_is_found_from_the_repository_root() -> None:
    assert Path(platform.__file__ or "").parent == Path(os.__file__).parent
    found = run(sys.executable, "-c", "import platform; print(platform.system())")
    assert found.stdout.strip() == platform.system(), found.stderr


@pytest.fixture
def shipped() -> Iterator[None]:
    """A cluster of one node whose workers get the sources as `ray job submit` ships them."""
    import ray

    runtime_env = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    ray.init(
        "local",
        num_cpus=1,
        include_dashboard=False,
        runtime_env=runtime_env | {"working_dir": str(ROOT)},
    )
    yield
    ray.shutdown()


def test_a_worker_runs_the_shipped_sources_and_pythons_own_platform(shipped: None) -> None:
    import ray

    def look() -> tuple[str, list[str]]:
        import platform

        import jobs
        import serve
        import stagebeam

        return platform.system(), [str(m.__file__) for m in (stagebeam, jobs, serve)]

    system, files = ray.get(ray.remote(look).remote())

    assert system == platform.system()
    assert all("working_dir_files" in file for file in files), files
    assert "/platform/stagebeam/" in files[0]


def test_the_import_contracts_hold() -> None:
    linted = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("room", ["stages", "records", "recipe", "cluster", "search", "evaluation"])
def test_a_light_room_loads_neither_torch_nor_ray(room: str) -> None:
    code = f"""
import importlib, pkgutil, sys
room = importlib.import_module("stagebeam.{room}")
for module in pkgutil.walk_packages(getattr(room, "__path__", []), room.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted({{"deepspeed", "ray", "torch", "transformers"}} & set(sys.modules)))
"""
    loaded = run(sys.executable, "-c", code)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, ""), loaded.stdout + loaded.stderr


def test_no_file_is_longer_than_500_lines() -> None:
    long = [
        str(path.relative_to(ROOT))
        for root in SOURCE_ROOTS
        for path in (ROOT / root).rglob("*")
        if path.suffix in {".py", ".js", ".css", ".html"}
        and len(path.read_text(encoding="utf-8").splitlines()) > 500
    ]
    assert not long
