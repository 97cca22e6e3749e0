"""A folder that training exports answers in vLLM as it does in transformers.

vLLM runs in an environment of its own, `.venv-vllm`. It has no Mllama since 0.11.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage

from stagebeam.models.encoder import EncodedRow
from stagebeam.models.folder import write_folder
from stagebeam.models.load import Loaded, load
from stagebeam.models.tiny.build import build_tiny
from stagebeam.records import Example, Message

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PROGRAM = Path(__file__).with_name("vllm_open.py")
SECONDS = 400  # for one start of vLLM, 30 to 60 of them on an idle machine
TOKENS = 8
SIZES = [(48, 48), (96, 60)]  # pixels, width and height

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 100),
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason="vLLM wants an environment of its own (3.4 GB): `make vllm-env` builds it",
    ),
]


def widen_heads(folder: Path) -> None:
    """Two heads of 32 in place of four of 16, for which vLLM's CPU attention has no kernel; the
    weights have the same shapes either way."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text = config["text_config"]
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    if "head_dim" in text:
        text["head_dim"] = 32
    if "mrope_section" in text["rope_parameters"]:
        text["rope_parameters"]["mrope_section"] = [4, 6, 6]
    file.write_text(json.dumps(config))


def greedy(loaded: Loaded, messages: list[Message], picture: Path) -> dict[str, list[int]]:
    """What vllm_open.py answers, by transformers."""
    image = loaded.encoder.image(picture.read_bytes())
    ids = loaded.encoder.prompt_ids(messages, [image])
    arrays = loaded.encoder.collate([EncodedRow(ids, ids, (image,))], left=True)
    batch = {key: torch.as_tensor(value) for key, value in arrays.items()}
    inputs = loaded.family.generation(loaded.model, batch, loaded.encoder.normalisation)
    out = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    return {"prompt_ids": ids, "ids": out[0, -TOKENS:].tolist()}


def in_vllm(folder: Path, requests: list[dict[str, Any]], scratch: Path) -> Any:
    """The answers of vllm_open.py, which is gone with all that it started when this returns."""
    asked, answered, log = (scratch / name for name in ("asked", "answered", "log"))
    asked.write_text(json.dumps(requests))
    command = [str(PYTHON), str(PROGRAM), str(folder), str(asked), str(answered)]
    variables = {"OMP_NUM_THREADS": "1", "VLLM_CACHE_ROOT": str(scratch / "cache")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, log.read_text()[-5000:]
    return json.loads(answered.read_text())


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
    assert in_vllm(folder, requests, tmp_path) == expected
