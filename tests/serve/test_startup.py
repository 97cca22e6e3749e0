"""What happens when the application cannot start, and what a recipe becomes."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import scripted_engines

from serve.app import AppArgs, app_from_recipe, serving, start
from stagebeam.gateway_config import KeysConfig
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search_config import SearchConfig

SCALING = Autoscaling(num_cpus=0.25)


def test_a_model_that_does_not_load_is_one_sentence(cluster: None) -> None:
    config = ServeConfig(
        port=0,
        generator=EngineConfig(model="nowhere", scaling=SCALING),
        judge=JudgeConfig(model="nowhere", scaling=SCALING),
    )
    with (
        pytest.raises(
            ValueError, match=r"^The application did not start: There is no model at nowhere\.$"
        ),
        serving(
            config,
            SearchConfig(),
            generator_loader=scripted_engines.no_such_model,
            judge_loader=scripted_engines.no_such_model,
        ),
    ):
        pytest.fail("it started")


def test_serving_knows_its_keys_and_stops_what_it_started(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALICE_KEY", "sk-alice-0123456789abcdef")  # here, and in no replica
    config = ServeConfig(
        port=0,
        keys=KeysConfig(env=("ALICE_KEY",)),
        generator=EngineConfig(model=str(tmp_path), scaling=SCALING),
        judge=JudgeConfig(model=str(tmp_path), scaling=SCALING),
    )
    with serving(
        config,
        SearchConfig(),
        generator_loader=scripted_engines.load_generator,
        judge_loader=scripted_engines.load_judge,
    ) as url:
        taken = config.model_copy(update={"port": httpx.URL(url).port})
        with pytest.raises(ValueError, match="cannot be used: Address already in use"):
            start(taken, SearchConfig())
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        login = {"Authorization": "Bearer sk-alice-0123456789abcdef"}
        assert httpx.get(f"{url}/v1/models", headers=login).status_code == 200
    closed = sorted(path.name.split("-")[1] for path in tmp_path.glob("closed-*"))
    assert closed == ["ScriptedGenerator", "ScriptedJudge"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_a_key_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\nmodel: {path: m}\ndata: {shards: d}\n"
        "serve: {generator: {model: m}, judge: {model: m}, keys: {env: [NO_KEY]}}\n"
    )
    with pytest.raises(ValueError, match=r"^The environment variable NO_KEY holds no API key"):
        app_from_recipe(AppArgs(recipe=str(path)))


def test_a_recipe_without_a_serve_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nmodel: {path: m}\ndata: {shards: d}\n")
    with pytest.raises(ValueError, match="has no serve section"):
        app_from_recipe(AppArgs(recipe=str(path)))
