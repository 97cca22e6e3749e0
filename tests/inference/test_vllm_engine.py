"""The engine on vLLM, really run: its CPU build in an environment of its own (`make vllm-env`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from greedy import export, greedy
from PIL import Image as PilImage
from vllm_env import MARKS, in_vllm

from stagebeam.models.load import Loaded, fingerprint
from stagebeam.records import Example, Message

PROGRAM = Path(__file__).with_name("vllm_calls.py")
TOKENS, MOST = 24, 400
BLOCK = 128  # tokens that vLLM keeps together on a CPU

pytestmark = MARKS


def telling_question(loaded: Loaded, scenes: list[Example], pictures: list[Path]) -> str:
    """One of more than a block, which the model answers at length and by the picture."""
    texts = " ".join(e.messages[0].text for e in scenes if not e.images).split()
    for start in range(0, 1000, 50):
        question = " ".join(texts[start : start + 2 * BLOCK])
        first, second = (greedy(loaded, question, picture, TOKENS) for picture in pictures)
        if len(first[0].split()) > 8 and first[0] != second[0]:
            return question
    raise AssertionError("no question is answered at length")


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def answered(
    request: pytest.FixtureRequest, scenes: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """What vLLM answered, and by transformers what it should have."""
    scratch = tmp_path_factory.mktemp(request.param)
    loaded = export(scratch / "export", request.param, scenes)
    drawn = [e for e in scenes if e.images][:2]
    pictures = []
    for number, example in enumerate(drawn):
        picture = scratch / f"{number}.png"
        picture.write_bytes(example.images[0].bytes)
        PilImage.open(picture).convert("RGB").resize((96, 60)).save(picture)
        pictures.append(picture)
    question = telling_question(loaded, scenes, pictures)
    asked = {
        "question": question,
        "pictures": [str(picture) for picture in pictures],
        "tokens": TOKENS,
        "most": MOST,
        "marker": f"{loaded.encoder.image_token} {question}",
    }
    answers = in_vllm(PROGRAM, scratch / "export", asked, scratch)
    prompt = loaded.encoder.prompt_ids(
        [Message("user", question)], [loaded.encoder.image(pictures[0].read_bytes())]
    )
    yield {
        **answers,
        "expected": greedy(loaded, question, pictures[0], TOKENS),
        "expected_next": greedy(loaded, question, pictures[0], TOKENS, answers["prefix"]),
        "expected_other": greedy(loaded, question, pictures[1], TOKENS),
        "expected_marker": greedy(loaded, asked["marker"], pictures[0], TOKENS),
        "prompt_tokens": len(prompt),
        "folder": scratch / "export",
    }


def test_greedy_is_that_of_transformers(answered: dict[str, Any]) -> None:
    for name, expected in (
        ("greedy", "expected"),
        ("second_stage", "expected_next"),
        ("other", "expected_other"),
        ("marker", "expected_marker"),  # words beside the image, and no second one
    ):
        (found,), (text, tokens, logprob) = answered[name]["found"], answered[expected]
        assert (found["text"].strip(), found["tokens"]) == (text.strip(), tokens)
        assert found["logprob"] == pytest.approx(logprob, abs=1e-2)
    assert answered["expected"][0] != answered["expected_other"][0], "the picture must matter"
    assert answered["blind"]["found"][0]["text"] != answered["greedy"]["found"][0]["text"]
    assert answered["after"]["found"] == answered["greedy"]["found"]


def test_seeds_decide_the_candidates(answered: dict[str, Any]) -> None:
    once, again = (call["found"] for call in answered["sampled"])
    assert [c["text"] for c in once] == [c["text"] for c in again]
    assert len({c["text"] for c in once}) == 4
    assert answered["alone"]["found"][0]["text"] == once[2]["text"], "whoever else is asked for"


def test_a_stop_is_kept(answered: dict[str, Any]) -> None:
    (found,) = answered["stopped"]["found"]
    (whole,) = answered["greedy"]["found"]
    assert found["finish"] == "stop" and whole["finish"] in ("length", "end")
    assert found["text"].endswith(answered["stop"])
    assert whole["text"].startswith(found["text"])


def test_the_second_stage_finds_the_first_in_the_cache(answered: dict[str, Any]) -> None:
    prompt = answered["prompt_tokens"]
    assert prompt > BLOCK
    first, second = answered["greedy"]["usage"], answered["second_stage"]["usage"]
    assert (first["cache_hits"], first["prefill_tokens"]) == (0, prompt)
    assert second["cache_hits"] == 1
    assert second["prefill_tokens"] <= prompt + TOKENS - prompt // BLOCK * BLOCK
    other = answered["other"]["usage"]
    assert (other["cache_hits"], other["prefill_tokens"]) == (0, prompt), "of another picture"
    four = answered["sampled"][0]["usage"]
    assert four["decode_tokens"] == sum(c["tokens"] for c in answered["sampled"][0]["found"])
    assert four["sequential_passes"] == max(c["tokens"] for c in answered["sampled"][0]["found"])


def test_time_and_leaving_end_the_work(answered: dict[str, Any]) -> None:
    (full,), (cut,) = answered["full"]["found"], answered["cut"]["found"]
    assert 0 < cut["tokens"] < full["tokens"]
    assert cut["finish"] == "length"
    assert full["text"].startswith(cut["text"]) and cut["text"]
    assert full["logprob"] < cut["logprob"] < 0
    assert answered["cancelled"] == {"under_way": 2, "left": 0}
    assert answered["left"] == 0


def test_a_bad_request_is_refused_in_a_sentence(answered: dict[str, Any]) -> None:
    assert "1024" in answered["too_long"]


def test_an_engine_that_works_is_healthy(answered: dict[str, Any]) -> None:
    assert answered["healthy"] is None


def test_the_fingerprint_is_that_of_the_folder(answered: dict[str, Any]) -> None:
    assert answered["fingerprint"] == f"vllm-{fingerprint(str(answered['folder']))}"
