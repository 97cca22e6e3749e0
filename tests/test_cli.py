"""The command line: quick to list, and each command is its job."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
# What a command reads first and what else it must be given, where that is not a recipe alone.
READS = {
    "tables": "evaluations",
    "preferences": "trace",
    "trace": "trace",
    "ask": "question",
    "simulate": "costs",
}
NEEDS = {
    "preferences": ("--output", "pairs"),
    "ask": ("--url", "http://127.0.0.1:9"),
    "render": ("--what", "train"),
    "submit": ("--to", "local"),
}
FIRST = {"submit": ("prepare",)}

# A job that another test has imported runs again here as a script, as it is meant to.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stagebeam"])
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_help_lists_every_command() -> None:
    listed = call("--help")
    assert listed.exit_code == 0
    for name, says in COMMANDS.items():
        assert name in listed.output and says in listed.output


def test_the_list_of_commands_loads_no_job_and_no_heavy_package() -> None:
    code = """
import sys, jobs.cli
try:
    jobs.cli.main(["--help"])
except SystemExit:
    pass
print(*sorted({"ray", "torch", "stagebeam", "jobs.train"} & set(sys.modules)), file=sys.stderr)
"""
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (listed.returncode, listed.stderr.strip()) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_is_its_jobs_help(name: str) -> None:
    helped = call(name, "--help")
    assert helped.exit_code == 0, helped.output
    assert f"Usage: python -m jobs.{name} " in helped.output
    assert READS.get(name, "recipe") in helped.output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(name: str, tmp_path: Path) -> None:
    missing = tmp_path / "no.yaml"
    failed = call(name, *FIRST.get(name, ()), str(missing), *NEEDS.get(name, ()))
    assert failed.exit_code == 2, failed.output
    expected = f"There is no {READS.get(name, 'recipe')} file at {missing}."
    if name == "ask":  # what is no image is the question
        expected = (
            "No server answers at http://127.0.0.1:9; start one with `stagebeam serve RECIPE`, or "
            "name another with --url."
        )
    if name == "tables":  # it reads folders
        expected = f"There are no figures in {missing}/benchmarks/NAME/figures.json."
    assert failed.output == f"error: {expected}\n"


def test_arguments_reach_the_job_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(runpy, "run_module", lambda job, **_: ran.append((job, sys.argv[1:])))
    arguments = ["--url", "http://127.0.0.1:9", "recipe.yaml", "--fresh", "-x", "--n=3"]
    assert call("evaluate", *arguments).exit_code == 0
    assert ran == [("jobs.evaluate", arguments)]


def test_an_unknown_command_is_refused() -> None:
    refused = call("tarin")
    assert refused.exit_code == 2
    assert "No such command" in refused.output


def test_the_installed_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["stagebeam"].partition(":")
    assert getattr(import_module(module), name) is main
