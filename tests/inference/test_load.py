"""From a recipe's engine section to a working generator and judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import answers, request
from chat_world import engine_config, judge_config

from stagebeam.inference.load import load_generator, load_judge
from stagebeam.inference.openai_engine import OpenAIEngine
from stagebeam.inference.remote_judge import RemoteJudge
from stagebeam.inference.text_judge import TextJudge
from stagebeam.inference.types import JudgeRequest
from stagebeam.models.load import fingerprint
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import EngineConfig, JudgeConfig
from stagebeam.records import Example


async def test_a_recipe_gives_a_generator_and_a_judge(
    tiny_folder: Path, scenes: list[Example]
) -> None:
    generator = load_generator(EngineConfig(model=str(tiny_folder), device="cpu"))
    judge = load_judge(JudgeConfig(model=str(tiny_folder), device="cpu", kind="likelihood"))
    try:
        assert generator.fingerprint == fingerprint(str(tiny_folder))
        assert judge.fingerprint == f"likelihood-{generator.fingerprint}"
        asked = request(scenes[0], seeds=(0, 1), temperature=1.0)
        texts = tuple(c.text for c in (await answers(generator, asked))[0])
        compared = JudgeRequest(asked.prompt, None, "", texts, ((0, 1),))
        assert (await judge.compare(compared)).verdicts[0].margin != 0
    finally:
        generator.close()
        judge.close()


@pytest.mark.parametrize("loader", [load_generator, load_judge])
def test_an_absent_model_is_refused(loader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = EngineConfig if loader is load_generator else JudgeConfig
    with pytest.raises(ValueError, match="no model folder at"):
        loader(config(model=str(tmp_path / "nothing")))


async def test_the_text_judge_runs_on_an_engine_of_our_own(
    tiny_folder: Path, scenes: list[Example]
) -> None:
    judge = load_judge(
        JudgeConfig(model=str(tiny_folder), device="cpu", kind="text", max_new_tokens=4)
    )
    try:
        assert isinstance(judge, TextJudge)
        asked = JudgeRequest(request(scenes[0]).prompt, None, "", ("a", "b"), ((0, 1),))
        judgement = await judge.compare(asked)
        assert judgement.verdicts[0].margin == 0  # untrained: it writes noise
        assert judgement.usage.judge_failures == 2
        assert judgement.usage.judge_tokens > 8
    finally:
        judge.close()


def test_a_recipe_chooses_what_is_loaded() -> None:
    """Without the servers being there: they are asked only when a question comes."""
    url = "http://127.0.0.1:9/v1"
    assert isinstance(load_generator(engine_config(url)), OpenAIEngine)
    assert isinstance(load_judge(judge_config(url, "text")), TextJudge)
    judge = load_judge(judge_config(url, "remote"))
    assert isinstance(judge, RemoteJudge)
    assert judge.fingerprint.startswith("remote-scripted@")


def test_vllm_says_how_to_install_it_and_what_it_has_not(
    tiny_folder: Path, scenes: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="vLLM does not run Mllama"):
        load_generator(EngineConfig(engine="vllm", model=str(tiny_folder)))
    build_tiny(tmp_path, [m.text for e in scenes for m in e.messages], family="llava")
    with pytest.raises(ValueError, match=r"pip install .*'\.\[vllm\]'"):
        load_generator(EngineConfig(engine="vllm", model=str(tmp_path)))
