"""A folder that training exports answers in vLLM as it does in transformers.

vLLM runs in an environment of its own, `.venv-vllm`. It has no Mllama since 0.11.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as PilImage
from vllm_env import MARKS, in_vllm, widen_heads

from stagebeam.models.encoder import EncodedRow
from stagebeam.models.folder import write_folder
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example, Message

PROGRAM = Path(__file__).with_name("vllm_open.py")
TOKENS = 8
SIZES = [(48, 48), (96, 60)]  # pixels, width and height

pytestmark = MARKS


def greedy(loaded: Loaded, messages: list[Message], picture: Path) -> dict[str, list[int]]:
    """What vllm_open.py answers, by transformers."""
    image = loaded.encoder.image(picture.read_bytes())
    ids = loaded.encoder.prompt_ids(messages, [image])
    arrays = loaded.encoder.collate([EncodedRow(ids, ids, (image,))], left=True)
    batch = {key: torch.as_tensor(value) for key, value in arrays.items()}
    inputs = loaded.family.generation(loaded.model, batch, loaded.encoder.normalisation)
    out = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return {"prompt_ids": ids, "ids": out[0, -TOKENS:].tolist()}


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_an_export_answers_in_vllm_as_in_transformers(
    family: str, scenes: list[Example], tmp_path: Path
) -> None:
    start, folder = tmp_path / "start", tmp_path / "export"
    build_tiny(start, [m.text for e in scenes for m in e.messages], family=family)
    widen_heads(start)
    trained = load(str(start), "cpu")
    write_folder(folder, trained.model, trained.encoder.processor, trained.model.state_dict())
    loaded = load(str(folder), "cpu")

    drawn = next(e for e in scenes if e.images)
    question = list(drawn.messages[:1])
    prompt = loaded.encoder.render(question, 1, answer_next=True)
    requests, expected = [], []
    for size in SIZES:
        picture = tmp_path / f"{size[0]}.png"
        picture.write_bytes(drawn.images[0].bytes)
        PilImage.open(picture).convert("RGB").resize(size).save(picture)
        requests.append({"prompt": prompt, "picture": str(picture), "tokens": TOKENS})
        expected.append(greedy(loaded, question, picture))
    assert expected[0]["ids"] != expected[1]["ids"], "the answers must depend on the picture"
    assert in_vllm(PROGRAM, folder, requests, tmp_path) == expected
