"""Run a job here or on a cluster: `python -m jobs.submit JOB RECIPE [arguments] --to WHERE`.

Where is one flag; the recipe and the job are the same. To a cluster that is there, the clone that
this command is from and the recipe are shipped; in Kubernetes a cluster comes with the job. The log
is shown as it grows, and the job's exit status is this command's.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cluster import ROOT
from jobs.errors import run_job
from jobs.submission.follow import Outcome, Shown, to_stdout
from jobs.submission.head import ADDRESS_VARIABLES, LostError, UnknownJobError
from jobs.submission.places import Place, place_of
from jobs.submission.shipping import runtime_env
from stagebeam.recipe import load_recipe

Job = Literal[
    "prepare", "annotate", "validate", "train", "judge", "evaluate", "calibrate", "quickstart"
]
HERE = "local"
INTERRUPTED = 130  # as a shell has it after Ctrl-C
STAYED_AWAY = os.EX_TEMPFAIL  # 75: the head is away, how the job ends is not known
_STOP_PATIENCE = 60.0  # seconds for a job that is told to stop


def run_here(job: Job, recipe: Path, arguments: Sequence[str], clone: Path) -> None:
    """Become the job, with a Ray that it starts itself. Does not return."""
    variables = {name: str(value) for name, value in _variables(clone).items()}
    environment = {**os.environ, **variables}
    for name in ADDRESS_VARIABLES:
        environment.pop(name, None)
    sources = [str(clone / "platform"), str(clone)]
    environment["PYTHONPATH"] = os.pathsep.join(sources)
    # -P: the current folder's files are data, whatever their names
    command = [sys.executable, "-P", "-m", f"jobs.{job}", str(recipe), *arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def _variables(clone: Path) -> dict[str, object]:
    found = runtime_env(clone).get("env_vars", {})
    assert isinstance(found, dict)
    return found


def watch(place: Place, job: str, again: str, *, skip: int, stop: bool) -> int:
    """Follow a job to its end, or until Ctrl-C; the exit status.

    `again` is the command that follows it again.
    """
    shown = Shown(to_stdout, skip)
    try:
        ended = asyncio.run(_end(place, job, shown))
    except LostError as error:
        _note(f"The {place.name} stays away ({error}); the job may go on. To follow it again:")
        _note(f"  {again} --from-line {shown.lines}")
        return STAYED_AWAY
    except KeyboardInterrupt:
        if stop:
            _note(asyncio.run(_stopped(place, job, shown)).sentence)
        else:
            _note(f"\nJob {job} goes on. To follow it again:")
            _note(f"  {again} --from-line {shown.lines}")
        return INTERRUPTED
    _note(f"error: {ended.sentence}" if ended.status else ended.sentence)
    return ended.status


async def _end(place: Place, job: str, shown: Shown) -> Outcome:
    return await place.follow(job, shown)


async def _stopped(place: Place, job: str, shown: Shown) -> Outcome:
    """Stop a job, and show what it still writes."""
    try:
        await place.stop(job)
        return await place.follow(job, shown, patience=_STOP_PATIENCE)
    except UnknownJobError:  # in Kubernetes a job is stopped by deleting it
        return Outcome(INTERRUPTED, f"Job {job} was stopped.")
    except LostError as error:
        said = f"Job {job} could not be stopped: the {place.name} is away ({error})."
        return Outcome(INTERRUPTED, said)


def _note(said: str) -> None:
    """For who watches: the job's own words alone are on stdout."""
    print(said, file=sys.stderr, flush=True)


app = typer.Typer(add_completion=False)


@app.command(context_settings={"ignore_unknown_options": True})
def main(
    to: Annotated[
        str,
        typer.Option(
            help="local, the address of a head's dashboard (http://HEAD:8265), or a cluster file "
            "of Kubernetes (my-cluster.yaml)."
        ),
    ],
    job: Annotated[Job | None, typer.Argument(help="What to run.", show_default=False)] = None,
    recipe: Annotated[Path | None, typer.Argument(help="Recipe file (YAML).")] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="The job's own arguments, such as --fresh.")
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(help="The clone whose code runs.", show_default="this one")
    ] = ROOT,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and leave.")] = False,
    attach: Annotated[
        str | None, typer.Option(help="Follow the job of this id, from its first line.")
    ] = None,
    from_line: Annotated[int, typer.Option(min=0, help="Lines to leave out.")] = 0,
    stop_on_interrupt: Annotated[
        bool, typer.Option("--stop-on-interrupt", help="Ctrl-C stops the job, too.")
    ] = False,
) -> None:
    """Run a job here or on a cluster, follow it, and end as it ends."""

    def run() -> int:
        if attach is not None:
            if job is not None or detach:
                raise ValueError("--attach takes the job's id and --to, no job and no --detach.")
            id_, place = attach, place_of(_elsewhere(to), working_dir, _note)
        else:
            if job is None or recipe is None:
                raise ValueError("Name a job and a recipe, or --attach and a job's id.")
            loaded = load_recipe(recipe)
            if to == HERE:
                if detach:
                    raise ValueError(f"--detach needs a head that keeps the job: {_START}.")
                run_here(job, recipe, arguments or (), working_dir.resolve())
            place = place_of(to, working_dir, _note)
            id_ = place.hand_over(job, recipe, loaded, arguments or ())
            if detach:
                print(id_)
                return 0
        again = shlex.join(["stagebeam", "submit", "--to", to, "--attach", id_])
        return watch(place, id_, again, skip=from_line, stop=stop_on_interrupt)

    try:
        status = run_job(run)
    except KeyboardInterrupt:
        status = INTERRUPTED
    raise SystemExit(status)


_START = "start one by `ray start --head`, and name it by --to http://127.0.0.1:8265"


def _elsewhere(to: str) -> str:
    if to == HERE:
        raise ValueError(f"A job that runs here ends with its command: {_START}.")
    return to


if __name__ == "__main__":
    app()
