"""From a recipe's engine section to a working generator and judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import answers, request

from stagebeam.inference.load import load_generator, load_judge
from stagebeam.inference.types import JudgeRequest
from stagebeam.models.load import fingerprint
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
