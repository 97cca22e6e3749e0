"""Applications with a real model behind them, and how the tests ask them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from PIL import Image

from serve.app import serving
from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, ServeConfig
from stagebeam.search.trace import Trace
from stagebeam.search_config import SearchConfig

SCALING = Autoscaling(num_cpus=0.5)


def write_model(folder: Path) -> str:
    build_tiny(folder, [*wording(), "Which colour is it ?", "red green blue"])
    return str(folder)


@contextmanager
def served(model: str, **judge: Any) -> Iterator[openai.OpenAI]:
    config = ServeConfig(
        port=0,
        generator=EngineConfig(model=model, scaling=SCALING),
        judge=JudgeConfig(model=model, scaling=SCALING, **judge),
    )
    with serving(config, SearchConfig(candidates=2, max_new_tokens=12, temperature=1.0)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def question() -> list[dict[str, object]]:
    encoded = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(encoded, "PNG")
    url = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
    return [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "Which colour is it ?"},
            ],
        }
    ]


def ask(client: openai.OpenAI, **search: object) -> Trace:
    reply = client.chat.completions.create(
        model="stagebeam",
        messages=question(),  # type: ignore[arg-type]
        extra_body={"search": {"include_trace": True, **search}},
    )
    trace = Trace.model_validate(reply.model_extra["trace"])  # type: ignore[index]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == trace.usage.decode_tokens > 0
    return trace
