"""The recipe: a mistake costs one sentence that names the file and the field, never a run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from stagebeam import recipe as schema
from stagebeam.recipe import EngineConfig, JudgeConfig, Recipe, load_recipe
from stagebeam.schema import Section
from stagebeam.source_config import ScenesSource
from stagebeam.storage import RemotePath

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
MINIMAL: dict[str, Any] = {"name": "r", "model": {"path": "m"}, "data": {"shards": "s"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def write(path: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump(MINIMAL | sections))
    return path


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"trian": {}}, "unknown key 'trian'"),
        ({"train": {"output_dir": "o", "epocs": 3}}, "unknown key 'train.epocs'"),
        ({"data": {}}, "'data.shards' is missing"),
        ({"train": 3}, "'train' must be a mapping of settings, got 3"),
        ({"train": {"output_dir": "o", "epochs": "three"}}, "'train.epochs': .* got 'three'"),
        ({"train": {"output_dir": "o", "epochs": True}}, "'train.epochs': .* got True"),
        ({"train": {"output_dir": "o", "learning_rate": float("inf")}}, "'train.learning_rate'"),
        ({"search": {"candidates": 0}}, "'search.candidates': .* greater than 0, got 0"),
        (
            {"search": {"candidates": {"CAPTION": 0}}},
            "'search.candidates.CAPTION': .* greater than 0, got 0",
        ),
        (
            {"search": {"candidates": {"caption": 2}}},
            r"'search.candidates.caption.\[key\]': .*'SUMMARY', 'CAPTION'.* got 'caption'",
        ),
        (
            {"search": {"candidates": {"CAPTION": 2}, "method": "majority"}},
            "'search': majority does not go by stages: candidates must be one number",
        ),
        (
            {"search": {"budget": "adaptive"}},
            "'search': an adaptive budget needs early_stop_margin",
        ),
        ({"search": {"method": "beam"}}, "'search.method': .* got 'beam'"),
        (
            {"train": {"output_dir": "o", "num_workers": 4, "global_batch_size": 30}},
            "'train': global_batch_size 30 does not divide over 4 workers x 1 micro-batches",
        ),
        (
            {"train": {"output_dir": "o", "num_workers": 4, "min_workers": 5}},
            "'train': min_workers 5 is above num_workers 4",
        ),
        (
            {
                "serve": {
                    "generator": {"model": "m", "scaling": {"min_replicas": 2}},
                    "judge": {"model": "m"},
                }
            },
            "'serve.generator.scaling': max_replicas is below min_replicas",
        ),
        (
            {"serve": {"generator": {"model": "m", "tensor_parallel": 2}, "judge": {"model": "m"}}},
            "'serve.generator': engine transformers has no tensor_parallel; engine vllm has",
        ),
        (
            {
                "serve": {
                    "generator": {
                        "engine": "vllm",
                        "model": "m",
                        "tensor_parallel": 2,
                        "scaling": {"num_gpus": 1},
                    },
                    "judge": {"model": "m"},
                }
            },
            "'serve.generator': tensor_parallel 2 reserves as many GPUs a replica; leave out "
            "scaling.num_gpus 1",
        ),
        ({"data": {"shards": "s", "sources": [{}]}}, r"'data.sources.0.kind' is missing"),
        ({"data": {"shards": "s", "sources": [{"kind": "csv"}]}}, r"'data.sources.0': .*'csv'"),
        ({"seed": "x" * 5000}, "'seed'"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_file_and_field(
    path: Path, sections: dict[str, Any], says: str
) -> None:
    write(path, **sections)
    with pytest.raises(ValueError, match=says) as caught:
        load_recipe(path)
    check_sentence(str(caught.value), path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must be a mapping"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"model: {path: m", "not valid YAML: .*line 1"),
        (b"name: a: b", "not valid YAML: .*line 1"),
        (b"name: 2024-13-45", "not valid YAML: month"),
        (b"name: \x00", "not valid YAML"),
        (b"name: \xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(path: Path, content: bytes, says: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        load_recipe(path)
    check_sentence(str(caught.value), path)


def test_a_missing_file_and_a_folder_are_one_sentence(path: Path) -> None:
    for place, says in ((path, "There is no recipe file"), (path.parent, "cannot be read")):
        with pytest.raises(ValueError, match=says) as caught:
            load_recipe(place)
        check_sentence(str(caught.value), place)


def check_sentence(message: str, path: Path) -> None:
    assert str(path) in message
    assert message.endswith(".") and not message.endswith("..")
    assert "\n" not in message and "pydantic" not in message and len(message) < 600


def test_all_mistakes_of_a_file_are_named_at_once(path: Path) -> None:
    write(path, seed="x", serch={})
    with pytest.raises(ValueError, match=r"'seed'.*; unknown key 'serch'"):
        load_recipe(path)


def test_an_exponent_without_a_point_is_a_number(path: Path) -> None:
    path.write_text("{name: r, model: {path: m}, data: {shards: s}, "
                    "train: {output_dir: o, learning_rate: 1e-5}}")  # fmt: skip
    train = load_recipe(path).train
    assert train is not None and train.learning_rate == 1e-5


def sections_of(model: type[Section]) -> set[type[Section]]:
    """The section and every section below it, through optionals, tuples and unions."""
    found = {model}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.update(sections_of(annotation))
        for inner in get_args(annotation):
            visit(inner)

    for field in model.model_fields.values():
        visit(field.annotation)
    return found


def test_every_setting_is_described() -> None:
    sections = sections_of(Recipe)
    assert {ScenesSource, schema.TrainConfig, schema.Autoscaling, schema.Limits} <= sections
    for section in sections:
        assert section.__doc__ and section.__doc__.strip(), section
        for name, field in section.model_fields.items():
            # A field that is a section is described by that section's docstring.
            nested = any(sub is not section for sub in sections_under(field.annotation))
            assert field.description or nested, f"{section.__name__}.{name}"


def sections_under(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for inner in get_args(annotation) for section in sections_under(inner)]


def test_every_section_refuses_unknown_keys_and_changes() -> None:
    for section in sections_of(Recipe):
        assert section.model_config["extra"] == "forbid" and section.model_config["frozen"]


def test_the_fingerprint_follows_the_settings_and_nothing_else(path: Path) -> None:
    first = load_recipe(write(path)).fingerprint()
    path.write_text("# reordered, and a default spelled out\n"
                    "data: {shards: s}\nmodel: {path: m}\nseed: 0\nname: r\n")  # fmt: skip
    assert load_recipe(path).fingerprint() == first
    assert len(first) == 12 and set(first) <= set("0123456789abcdef")

    for change in ({"seed": 1}, {"search": {"candidates": 5}}, {"data": {"shards": "other"}}):
        assert load_recipe(write(path, **change)).fingerprint() != first


def test_the_fingerprint_is_the_same_in_another_process(path: Path) -> None:
    code = (
        "import sys; from stagebeam.recipe import load_recipe;"
        "print(load_recipe(sys.argv[1]).fingerprint())"
    )
    command = [sys.executable, "-c", code, str(write(path))]
    other = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT / "platform"), "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() == load_recipe(path).fingerprint()


def test_a_recipe_may_change_another_one(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml")
    middle, top = tmp_path / "middle.yaml", tmp_path / "top.yaml"
    middle.write_text("extends: base.yaml\nname: middle\ndata: {max_length: 77}\n")
    top.write_text("extends: middle.yaml\nname: top\n")
    before, after = load_recipe(base), load_recipe(top)
    data = before.data.model_copy(update={"max_length": 77})
    assert after == before.model_copy(update={"name": "top", "data": data})
    base.write_text("extends: top.yaml\n")
    with pytest.raises(ValueError, match=r"^The recipe \S+ extends itself\.$"):
        load_recipe(top)
    middle.write_text("extends: none.yaml\n")
    with pytest.raises(ValueError, match=r"^There is no recipe file at \S+none\.yaml\.$"):
        load_recipe(top)


def test_a_recipe_may_lie_in_a_bucket_and_change_another_one_there(bucket: RemotePath) -> None:
    (bucket / "base.yaml").write_bytes(yaml.safe_dump(MINIMAL).encode())
    top = bucket / "mine" / "top.yaml"
    top.write_bytes(b"extends: ../base.yaml\nname: top\n")
    assert load_recipe(str(top)) == Recipe.model_validate(MINIMAL | {"name": "top"})
    top.write_bytes(b"extends: top.yaml\n")
    with pytest.raises(ValueError, match=r"^The recipe s3://\S+/top\.yaml extends itself\.$"):
        load_recipe(str(top))
    with pytest.raises(ValueError, match=r"^There is no recipe file at s3://\S+/none\.yaml\.$"):
        load_recipe(str(bucket / "none.yaml"))


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(shipped: Path) -> None:
    load_recipe(shipped)


def test_the_papers_recipe_has_the_papers_settings() -> None:
    recipe = load_recipe(ROOT / "jobs/recipes/llava-o1-llama3.2-11b-1n8g-zero3.yaml")
    train = recipe.train
    assert train is not None
    assert (train.learning_rate, train.epochs, train.schedule) == (1e-5, 3, "step")
    assert (train.step_decay, train.zero_stage, recipe.data.max_length) == (0.85, 3, 4096)
    assert train.global_batch_size == 4 * train.num_workers == 32
    assert (recipe.search.temperature, recipe.search.top_p) == (0.6, 0.9)
    assert recipe.search.tournament == "chain"


SERVER = {"base_url": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"engine": "openai"}, "engine openai needs a server"),
        ({"server": SERVER}, "engine transformers has no server"),
        ({"engine": "vllm", "server": SERVER}, "engine vllm has no server"),
        ({"max_length": 100}, "engine transformers has no max_length"),
        ({"kind": "verdict", "engine": "vllm"}, "needs engine transformers; .* by kind text$"),
        (
            {"kind": "likelihood", "engine": "openai", "server": SERVER},
            "needs engine transformers; .* by kind text or remote$",
        ),
        ({"kind": "remote"}, "kind remote needs engine openai"),
    ],
)
def test_an_engine_and_a_kind_that_do_not_go_together_are_refused(
    section: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        JudgeConfig.model_validate({"model": "m", **section})
    (error,) = refused.value.errors()
    assert re.search(says, error["msg"])


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"engine": "vllm", "kind": "text", "max_length": 100},
        {"engine": "openai", "server": SERVER, "kind": "remote"},
    ],
)
def test_the_judges_model_can_stand_in_the_generators_place(section: dict[str, Any]) -> None:
    judge = JudgeConfig.model_validate({"model": "m", "threads": 3, **section})
    alone = judge.as_generator
    assert type(alone) is EngineConfig
    judged = judge.model_dump(include=set(EngineConfig.model_fields))
    assert alone.model_dump() == judged
