"""Jobs submitted to real clusters, and here, by the command, from a folder that is no clone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from ray.util.state import list_tasks
from ray_nodes import environment, ray_nodes
from shaky_wire import ShakyWire
from typer.testing import CliRunner
from waiting import wait_until

from jobs.submission.follow import Outcome, Shown, follow
from jobs.submission.head import Head, LostError, connect, submit
from jobs.submit import app
from stagebeam.data.shards import iter_examples

ROOT = Path(__file__).resolve().parents[2]
LINES = [f"line {number}\n" for number in range(60)]
# What a job that takes ten seconds writes; its driver is a shell, which starts at once.
COUNTING = "for n in $(seq 0 59); do echo line $n; sleep 0.15; done"

Submitted = subprocess.CompletedProcess[str]


def command(*words: str | Path, token: str | None = None) -> tuple[list[str], dict[str, str]]:
    # An address in the environment is where Ray's own client would go.
    env = environment(token) | {"RAY_ADDRESS": "127.0.0.1:1"}
    env["PYTHONPATH"] = f"{ROOT / 'platform'}{os.pathsep}{ROOT}"
    return [sys.executable, "-m", "jobs.submit", *map(str, words)], env


def run(folder: Path, *words: str | Path, token: str | None = None) -> Submitted:
    args, env = command(*words, token=token)
    return subprocess.run(args, env=env, cwd=folder, capture_output=True, text=True, timeout=240)


def write_recipe(folder: Path, source: dict[str, object], name: str = "recipe.yaml") -> Path:
    settings = {
        "name": "submitted",
        "model": {"path": "hub/none"},
        "data": {"shards": str(folder / "shards"), "rows_per_shard": 8, "sources": [source]},
    }
    path = folder / name
    path.write_text(yaml.safe_dump(settings))
    return path


def ids(folder: Path) -> list[str]:
    return sorted(example.id for example in iter_examples(folder / "shards"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose library and driver say that they are not the installed ones."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("platform", "jobs", "serve", "cluster"):
        shutil.copytree(ROOT / part, folder / part)
    changes = {
        "platform/stagebeam/data/sources/scenes.py": ('f"scenes-{', 'f"cloned-{'),
        "jobs/prepare.py": (
            "    recipe = load_recipe(path)\n",
            '    print("the clone\'s driver")\n',
        ),
    }
    for name, (old, new) in changes.items():
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new if "driver" not in new else old + new))
    return folder


SCENES: dict[str, object] = {"kind": "scenes", "rows": 16}


def test_a_submitted_job_runs_the_shipped_code_and_recipe_and_ends_as_the_job_does(
    clone: Path, tmp_path: Path
) -> None:
    write_recipe(tmp_path, SCENES)
    with ray_nodes(1) as url:
        words = ("prepare", "recipe.yaml", "--fresh", "--working-dir", clone, "--to", url)
        done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "the clone's driver" in done.stdout
    assert "16" in done.stdout.split("usable")[1]
    assert "has succeeded" in done.stderr
    written = ids(tmp_path)
    assert len(written) == 16 and all(name.startswith("cloned-") for name in written)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ray_nodes(3) as url:
        yield url


@pytest.fixture(scope="module")
def head(url: str) -> Head:
    return connect(url)


def started(head: Head, entrypoint: str) -> str:
    job = f"test-{uuid4().hex[:8]}"
    submit(head, job, entrypoint, {})
    return job


@pytest.mark.slow
def test_a_wrong_recipe_ends_the_command_with_the_jobs_status_and_its_reason(
    url: str, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere.jsonl"
    source = {"kind": "llava_cot", "annotations": str(nowhere), "image_root": str(tmp_path)}
    failed = run(tmp_path, "prepare", write_recipe(tmp_path, source), "--to", url)
    assert failed.returncode == 2
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: Job stagebeam-prepare-")
    assert f"failed with exit status 2: Cannot open the annotations {nowhere}" in last


@pytest.mark.slow
def test_a_detached_job_goes_on_over_several_raylets_and_is_followed_later(
    url: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, SCENES | {"rows": 96})
    left = run(tmp_path, "prepare", recipe, "--to", url, "--detach")
    assert left.returncode == 0, left.stderr
    followed = run(tmp_path, "--to", url, "--attach", left.stdout.strip())
    assert followed.returncode == 0, followed.stderr
    assert "usable" in followed.stdout
    assert len(set(ids(tmp_path))) == 96
    reading = [("name", "=", "MapBatches(run)"), ("state", "=", "FINISHED")]
    tasks = list_tasks(address=url, filters=reading, limit=1000)
    assert len({task.node_id for task in tasks}) >= 2


def interrupted(
    folder: Path, *words: str | Path, before: Callable[[], None] = lambda: None
) -> tuple[str, str, int]:
    """What the command wrote, said and ended with, where Ctrl-C came after ten lines or so and two
    seconds after what comes before it."""
    args, env = command(*words)
    process = subprocess.Popen(
        args,
        env=env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal, also where these tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stderr is not None
    said = ""
    while "line 9\n" not in said:
        line = process.stdout.readline()
        assert line, "it ended before it was interrupted"
        said += line
    before()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    said += process.stdout.read()  # not `communicate`, which passes over what was read ahead
    return said, process.stderr.read(), process.wait(90)


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_and_says_how_to_follow_the_rest(
    head: Head, url: str, tmp_path: Path
) -> None:
    job = started(head, f"{COUNTING}; exit 3")
    first, said, status = interrupted(tmp_path, "--to", url, "--attach", job)
    assert status == 130
    again = said.strip().splitlines()[-1].split()
    assert again[:2] == ["stagebeam", "submit"]
    second = run(tmp_path, *again[2:])
    assert second.returncode == 3
    assert (first + second.stdout).splitlines(keepends=True)[-60:] == LINES
    assert "failed with exit status 3: line 59" in second.stderr


@pytest.mark.slow
def test_ctrl_c_is_heard_while_the_head_is_away(head: Head, tmp_path: Path) -> None:
    job = started(head, COUNTING)
    with ShakyWire(head.get_address()) as wire:
        began = time.monotonic()
        _, said, status = interrupted(tmp_path, "--to", wire.url, "--attach", job, before=wire.cut)
        assert time.monotonic() - began < 60
    assert status == 130
    assert f"Job {job} goes on" in said


@pytest.mark.slow
def test_ctrl_c_stops_the_job_where_that_is_asked_for(head: Head, url: str, tmp_path: Path) -> None:
    job = started(head, f"{COUNTING}; sleep 600")
    words = ("--to", url, "--attach", job, "--stop-on-interrupt")
    _, said, status = interrupted(tmp_path, *words)
    assert status == 130
    assert said.strip().splitlines()[-1] == f"Job {job} was stopped."
    assert head.get_job_info(job).status == "STOPPED"


@pytest.mark.slow
@pytest.mark.parametrize(("entrypoint", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_the_exit_status_is_the_jobs_own(head: Head, entrypoint: str, status: int) -> None:
    assert asyncio.run(follow(head, started(head, entrypoint), Shown(str))).status == status


@pytest.mark.slow
def test_a_job_whose_answer_was_lost_is_not_run_twice(head: Head, tmp_path: Path) -> None:
    """The head took it and the connection broke: the same job is handed over again."""
    with ShakyWire(head.get_address()) as wire:
        through = connect(wire.url)
        wire.drop_answers_to("POST", times=1)
        job = f"test-{uuid4().hex[:8]}"
        submit(through, job, f"echo once >> {tmp_path / 'runs'}", {})
    assert asyncio.run(follow(head, job, Shown(str))).status == 0
    assert (tmp_path / "runs").read_text() == "once\n"


@pytest.mark.slow
def test_no_line_is_lost_or_doubled_where_the_connection_is(head: Head) -> None:
    said: list[str] = []
    notes: list[str] = []

    async def with_a_break(wire: ShakyWire) -> Outcome:
        shown = Shown(said.append)
        following = asyncio.create_task(
            follow(connect(wire.url), started(head, COUNTING), shown, note=notes.append)
        )
        await asyncio.to_thread(wait_until, lambda: "line 9\n" in "".join(said))
        wire.cut()
        await asyncio.sleep(2)
        wire.mend()
        return await following

    with ShakyWire(head.get_address()) as wire:
        ended = asyncio.run(with_a_break(wire))
    assert ended.status == 0
    assert "".join(said).splitlines(keepends=True)[-60:] == LINES
    assert len(notes) == 1 and "The connection to the head is lost" in notes[0]


@pytest.mark.slow
def test_a_head_that_stays_away_is_given_up(head: Head) -> None:
    async def cut_off(wire: ShakyWire) -> Outcome:
        said: list[str] = []
        job = started(head, COUNTING)
        following = asyncio.create_task(
            follow(connect(wire.url), job, Shown(said.append), patience=3)
        )
        await asyncio.to_thread(wait_until, lambda: "line 3\n" in "".join(said))
        wire.cut()
        return await following

    with ShakyWire(head.get_address()) as wire, pytest.raises(LostError):
        asyncio.run(cut_off(wire))


@pytest.mark.slow
def test_a_job_that_the_head_does_not_know_is_one_sentence(url: str, tmp_path: Path) -> None:
    failed = run(tmp_path, "--to", url, "--attach", "no-such-job")
    assert failed.returncode == 2
    assert failed.stderr == f"error: The head at {url} knows no such job.\n"


@pytest.mark.slow
def test_a_head_with_a_token_is_spoken_to_with_it_alone(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, SCENES)
    token, wrong = uuid4().hex * 2, uuid4().hex * 2
    with ray_nodes(1, token=token) as url:
        words = ("prepare", recipe, "--to", url)
        without, refused = run(tmp_path, *words), run(tmp_path, *words, token=wrong)
        done = run(tmp_path, *words, token=token)
    assert (without.returncode, refused.returncode) == (2, 2)
    assert without.stderr.startswith(f"error: The head at {url} demands a token: set RAY_AUTH_MODE")
    assert refused.stderr.startswith(f"error: The head at {url} refuses this token")
    assert without.stderr.count("\n") == refused.stderr.count("\n") == 1
    assert done.returncode == 0, done.stderr
    assert len(ids(tmp_path)) == 16


@pytest.mark.slow
def test_a_job_runs_here_in_a_ray_of_its_own(clone: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, SCENES)
    done = run(tmp_path, "prepare", "recipe.yaml", "--working-dir", clone, "--to", "local")
    assert done.returncode == 0, done.stderr
    assert all(name.startswith("cloned-") for name in ids(tmp_path))


def test_a_job_runs_here_whatever_the_environment_says_of_a_cluster(
    clone: Path, tmp_path: Path
) -> None:
    """A mistake that is found before Ray starts, so that this is quick."""
    source = {"kind": "llava_cot", "annotations": "gone.jsonl", "image_root": "."}
    write_recipe(tmp_path, source)
    done = run(tmp_path, "prepare", "recipe.yaml", "--working-dir", clone, "--to", "local")
    assert done.returncode == 2
    assert done.stdout == "the clone's driver\n"
    assert done.stderr.startswith("error: Cannot open the annotations ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prepare", "none.yaml", "--to", "local"), "There is no recipe file at none.yaml."),
        (("--to", "local"), "Name a job and a recipe, or --attach and a job's id."),
        (("--to", "local", "--attach", "j"), "A job that runs here ends with its command"),
        (("prepare", "recipe.yaml", "--to", "local", "--detach"), "--detach needs a head"),
        (("prepare", "recipe.yaml", "--to", "auto"), "'auto' is no address of a head"),
        (("prepare", "recipe.yaml", "--to", "http://127.0.0.1:1"), "No Ray head answers at"),
    ],
)
def test_a_mistake_is_told_before_anything_is_shipped(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # and put back what connecting takes away
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, SCENES)
    failed = CliRunner().invoke(app, words)
    assert failed.exit_code == 2
    assert failed.stderr.startswith(f"error: {said}")
    assert failed.stderr.count("\n") == 1
