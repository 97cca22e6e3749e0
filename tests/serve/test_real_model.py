"""The whole chain with a real model: HTTP, search, generator and judge replicas."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import openai
import pytest
from PIL import Image

from serve.app import serving
from stagebeam.inference.wording import wording
from stagebeam.models.tiny.build import build_tiny
from stagebeam.recipe import Autoscaling, EngineConfig, JudgeConfig, SearchConfig, ServeConfig
from stagebeam.search.trace import Trace

SCALING = Autoscaling(num_cpus=0.5)


@pytest.fixture(scope="module")
def client(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    model = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny(model, [*wording(), "Which colour is it ?", "red green blue"])
    config = ServeConfig(
        port=0,
        generator=EngineConfig(model=str(model), scaling=SCALING),
        judge=JudgeConfig(model=str(model), scaling=SCALING),
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


def test_the_same_question_and_seed_get_the_same_trace(client: openai.OpenAI) -> None:
    first, again = ask(client, seed=3), ask(client, seed=3)
    other = ask(client, seed=4)
    assert (first.text, first.id) == (again.text, again.id)
    assert first.text != other.text
    assert first.usage.image_encodes == 1 and again.usage.image_encodes == 0
    assert again.usage.cache_hits > 0


def test_every_method_answers(client: openai.OpenAI) -> None:
    for method in ("greedy", "majority", "best_of_n", "stage_beam"):
        trace = ask(client, method=method)
        assert trace.method == method and trace.text


def test_chat_markers_in_a_question_are_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="marker of the chat template"):
        client.chat.completions.create(
            model="stagebeam", messages=[{"role": "user", "content": "Say <|eot_id|> now"}]
        )
