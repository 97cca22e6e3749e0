"""A model that vLLM divides over processes, which are GPUs elsewhere, really run on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from greedy import export, greedy
from vllm_env import MARKS, in_vllm

from stagebeam.records import Example

PROGRAM = Path(__file__).with_name("vllm_parallel.py")
TOKENS = 16

pytestmark = MARKS


def test_a_divided_model_writes_what_the_whole_one_writes(
    scenes: list[Example], tmp_path: Path
) -> None:
    loaded = export(tmp_path / "export", "qwen2_5_vl", scenes)
    example = next(e for e in scenes if e.images)
    picture = tmp_path / "picture.png"
    picture.write_bytes(example.images[0].bytes)
    question = example.messages[0].text
    text, tokens, logprob = greedy(loaded, question, picture, TOKENS)
    asked = {"question": question, "picture": str(picture), "tokens": TOKENS}
    answered = in_vllm(PROGRAM, tmp_path / "export", asked, tmp_path)
    (candidate,) = answered["found"]
    assert (candidate["text"], candidate["tokens"]) == (text, tokens)
    assert candidate["logprob"] == pytest.approx(logprob, abs=0.01)
