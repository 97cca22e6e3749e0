"""Places by path and by URL, on a disk and on a real S3 server."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from fastapi import FastAPI, Request, Response
from http_server import served
from object_store import forget, names
from pydantic import ValidationError

from stagebeam.local_copy import fetched, working_copy
from stagebeam.schema import Section
from stagebeam.storage import (
    Place,
    RemotePath,
    filled,
    move_files,
    open_parquet,
    place_of,
    put,
    remove_tree,
    scratch_for,
    sizes,
    write_whole,
)


class Both(Section):
    either: Place
    local: Path | None = None


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder, of either kind."""
    if request.param == "disk":
        return tmp_path / "folder"
    bucket: RemotePath = request.getfixturevalue("bucket")
    return bucket / tmp_path.name


def test_a_recipe_may_say_a_path_or_a_url_and_says_it_again_as_it_was() -> None:
    said = Both.model_validate({"either": "s3://b/a folder/x", "local": "/tmp/x"})
    assert said.either == RemotePath("s3://b", "a folder/x")
    assert said.model_dump(mode="json") == {"either": "s3://b/a folder/x", "local": "/tmp/x"}
    assert Both.model_validate(said.model_dump()) == said
    assert Both.model_validate({"either": "file:///tmp/a%20b"}).either == Path("/tmp/a b")
    assert Both.model_validate({"either": "runs/x"}).either == Path("runs/x")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"either": "s3:///x"}, "names no bucket"),
        ({"either": "s3://key:secret@b/x"}, "come from the environment"),
        ({"either": "s3://b/x?endpoint_override=localhost"}, "come from the environment"),
        ({"either": "s3://b/../x"}, "leads out of itself"),
        ({"either": "file://host/x"}, "names no file of this machine"),
        ({"either": 3}, "path"),
        ({"either": "x", "local": "s3://b/x"}, "local is a path on this machine's disks"),
    ],
)
def test_a_wrong_place_is_refused_when_a_recipe_is_read(said: object, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as raised:
        Both.model_validate(said)
    assert "secret@" not in raised.value.errors()[0]["msg"]


def test_names_of_a_remote_path_are_those_of_a_local_one() -> None:
    remote, local = place_of("s3://b/one/two.x"), Path("/b/one/two.x")
    assert isinstance(remote, RemotePath)
    assert (remote.name, remote.parent.name) == (local.name, local.parent.name)
    assert str(remote.with_name("y") / "z" / "w") == "s3://b/one/y/z/w"
    assert list(map(str, remote.parents)) == ["s3://b/one", "s3://b"]
    assert remote.absolute() == remote


def test_files_are_written_read_listed_moved_and_removed(folder: Place) -> None:
    assert not folder.exists() and sizes(folder) == {}
    (folder / "below").mkdir(parents=True)
    write_whole(folder / "a.txt", b"one")
    write_whole(folder / "a.txt", b"two\nthree\n")
    write_whole(folder / "below" / "b%20 c.txt", b"")
    scratch = scratch_for(folder / "d.bin")
    scratch.write_bytes(bytes(11 << 20))  # uploaded in parts
    put(scratch, folder / "d.bin")
    assert not scratch.exists()
    assert sizes(folder) == {"a.txt": 10, "d.bin": 11 << 20}
    assert sizes(folder / "below") == {"b%20 c.txt": 0}
    assert (folder / "a.txt").read_text() == "two\nthree\n"
    with (folder / "a.txt").open("rb") as lines:
        assert list(lines) == [b"two\n", b"three\n"]
    assert [p.name for p in folder.glob("*.txt")] == ["a.txt"]
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "below", "d.bin"]
    pairs = [(folder / "a.txt", folder / "e.txt"), (folder / "gone", folder / "f.txt")]
    move_files(pairs)
    move_files(pairs)  # as after a kill
    assert sizes(folder) == {"d.bin": 11 << 20, "e.txt": 10}
    (folder / "e.txt").unlink()
    (folder / "e.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "e.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "e.txt").read_bytes()
    remove_tree(folder)
    remove_tree(folder)
    assert not (folder / "d.bin").exists()
    assert not (folder / "below" / "b%20 c.txt").exists()


def test_row_groups_of_a_parquet_file_are_read_one_at_a_time(folder: Place) -> None:
    table = pa.table({"n": range(1000)})
    with filled(folder) as local:
        pq.write_table(table, local / "t.parquet", row_group_size=100)
    with open_parquet(folder / "t.parquet", memory_map=True) as file:
        assert file.num_row_groups == 10
        assert file.read_row_group(7)["n"].to_pylist() == list(range(700, 800))


def test_a_folder_that_could_not_be_filled_is_not_uploaded(bucket: RemotePath) -> None:
    with pytest.raises(RuntimeError), filled(bucket / "torn") as local:
        (local / "x").write_text("x")
        raise RuntimeError
    assert names(bucket / "torn") == []


def test_a_working_copy_starts_with_what_is_there_and_is_saved_after_an_error(
    folder: Place,
) -> None:
    with working_copy(folder) as local:
        (local / "deep" / "er").mkdir(parents=True)
        (local / "deep" / "er" / "answers.jsonl").write_text("1\n")
    with pytest.raises(RuntimeError), working_copy(folder) as local:
        with (local / "deep" / "er" / "answers.jsonl").open("a") as lines:
            lines.write("2\n")
        raise RuntimeError
    assert (folder / "deep" / "er" / "answers.jsonl").read_text() == "1\n2\n"


def test_a_working_copy_is_saved_while_it_is_worked_in_and_never_answers_without_traces(
    bucket: RemotePath,
) -> None:
    place = bucket / "saved"
    with working_copy(place, save_every=0.02) as local:
        for number in range(150):
            for name in ("traces.jsonl", "answers.jsonl"):
                with (local / name).open("a") as lines:
                    lines.write(f"{number}\n")
            time.sleep(0.002)
            if number % 10 == 9 and (place / "answers.jsonl").exists():
                answers = (place / "answers.jsonl").read_text().splitlines()
                traces = (place / "traces.jsonl").read_text().splitlines()
                assert set(answers) <= set(traces)
        assert sizes(place)["answers.jsonl"] > 0
    assert len((place / "answers.jsonl").read_text().splitlines()) == 150


def test_a_model_is_fetched_once_and_again_when_it_has_changed(
    bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = str(bucket / "model")
    with pytest.raises(ValueError, match="no model folder at s3://"):
        fetched(url)
    (bucket / "model" / "config.json").write_text("{}")
    (bucket / "model" / "adapter" / "a.json").write_text("1")
    first = fetched(url)
    (Path(first) / "seen").touch()
    assert (Path(fetched(url)) / "seen").exists()
    assert (Path(first) / "adapter" / "a.json").read_text() == "1"
    (bucket / "model" / "config.json").write_text("{ }")
    assert (Path(fetched(url)) / "config.json").read_text() == "{ }"
    assert fetched("some/name") == "some/name"


@pytest.fixture
def forgetful(bucket: RemotePath, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, for a test that changes it."""
    forget()
    return monkeypatch


def test_a_bucket_that_is_not_there_is_one_sentence(forgetful: pytest.MonkeyPatch) -> None:
    for use in (lambda p: p.read_bytes(), lambda p: p.write_bytes(b""), sizes, working_copy_of):
        with pytest.raises(ValueError, match=r"^There is no bucket s3://nowhere\.$"):
            use(place_of("s3://nowhere/x"))


def working_copy_of(place: Place) -> None:
    with working_copy(place):
        raise AssertionError("it should not have been opened")


def test_a_kind_of_storage_that_is_not_known_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^ftp9://x is of no kind of storage that is known here"):
        sizes(place_of("ftp9://x/y"))


def test_a_server_that_cannot_be_reached_is_one_sentence(
    bucket: RemotePath, forgetful: pytest.MonkeyPatch
) -> None:
    forgetful.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError) as raised:
        sizes(bucket / "x")
    forget()
    said = str(raised.value)
    assert said.startswith(f"{bucket} cannot be reached at http://127.0.0.1:9 (AWS_ENDPOINT_URL): ")
    assert "\n" not in said


def test_keys_that_are_refused_are_one_sentence(s3: str, bucket: RemotePath) -> None:
    forget()
    requests.post(f"{s3}/moto-api/reset-auth", data="0", timeout=30).raise_for_status()
    try:
        with pytest.raises(ValueError) as raised:
            (bucket / "x").write_bytes(b"x")
    finally:
        requests.post(f"{s3}/moto-api/reset-auth", data="inf", timeout=30).raise_for_status()
        forget()
    said = str(raised.value)
    assert said.startswith(f"{bucket} refuses access (AWS_ACCESS_KEY_ID is set): ")
    assert "\n" not in said


def test_without_keys_it_is_said_that_there_are_none(
    bucket: RemotePath, forgetful: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "PUT", "POST"])
    def refuse(request: Request) -> Response:
        """What S3 answers to a request that is not signed; moto breaks on one."""
        assert "Authorization" not in request.headers
        body = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        return Response(body, 403, media_type="application/xml")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        forgetful.delenv(name)
    forgetful.setenv("HOME", str(tmp_path))
    with served(app) as url:
        forgetful.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ValueError) as raised:
            (bucket / "x").read_bytes()
    forget()
    assert str(raised.value).startswith(f"{bucket} refuses access (AWS_ACCESS_KEY_ID is not set): ")
