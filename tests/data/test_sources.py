"""What holds for every source."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from stagebeam.data.sources import absolute, fingerprint, read, read_span, spans
from stagebeam.source_config import Source

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
LLAVA = {"annotations": "rows.json", "image_root": "images"}
SETTINGS: dict[str, dict[str, Any]] = {
    "scenes": {"rows": 3},
    "llava_cot": LLAVA,
    "llava_instruct": LLAVA,
    "huggingface": {"path": "folder", "columns": {"conversations": "conversations"}},
    "webdataset": {"shards": "*.tar"},
    "tsv": {"file": "bench.tsv"},
}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files for every source, as the current one."""
    row = {"id": "1", "conversations": TURNS}
    for name in ("images", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "rows.json").write_text(json.dumps(row))
    (tmp_path / "folder/train.jsonl").write_text(json.dumps(row))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "rows.json", "1.json")
    (tmp_path / "bench.tsv").write_text("index\timage\tquestion\tanswer\n1\t\tWhat?\tThat.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(kind: str) -> Source:
    if kind == "llava_instruct":
        Path("rows.json").write_text(f"[{Path('rows.json').read_text()}]")
    return TypeAdapter[Source](Source).validate_python({"kind": kind, **SETTINGS[kind]})


def test_every_kind_of_source_is_here() -> None:
    union, _ = get_args(Source)
    assert {model.model_fields["kind"].default for model in get_args(union)} == set(SETTINGS)


@pytest.mark.parametrize("kind", SETTINGS)
def test_stretches_of_an_absolute_source_can_be_read_elsewhere(
    inside: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = absolute(made(kind))
    rows = list(read(source))
    assert rows and absolute(source) == source
    shipped = pickle.loads(pickle.dumps(list(spans(source, 2))))
    first = fingerprint(source)
    monkeypatch.chdir("/")
    assert [row for span in shipped for row in read_span(span)] == rows
    assert fingerprint(source) == first
