"""The unmodified `openai` client against the gateway: what it reads, raises, and gives up on."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from bad_requests import BAD_REQUESTS, ask, data_url
from local_app import LocalSearcher, app_of, served_here

from serve.errors import ApiError
from serve.keys import Key
from stagebeam.gateway_config import KeysConfig
from stagebeam.search.events import StageDecided

SECRET = "sk-client-0123456789abcdef"
MODEL = "scripted"
DETAILED = (
    "<SUMMARY> summary red </SUMMARY>\n<CAPTION> caption red </CAPTION>\n"
    "<REASONING> reasoning red </REASONING>"
)


class MoodySearcher(LocalSearcher):
    """Fails as the question says: `status 503` and the like, or `break off`."""

    async def search(self, prompt: Any, settings: Any, **how: bool) -> Any:
        text = prompt.messages[-1].text
        if text.startswith("status "):
            raise ApiError(int(text.split()[1]), "As you wish.")
        async for item in super().search(prompt, settings, **how):
            yield item
            if text == "break off" and isinstance(item, StageDecided):
                raise KeyError("a secret of the engine")


@pytest.fixture(scope="module")
def searcher() -> LocalSearcher:
    return MoodySearcher()


@pytest.fixture(scope="module")
def url(searcher: LocalSearcher) -> Iterator[str]:
    with served_here(app_of(searcher)) as base_url:
        yield f"{base_url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="unused", max_retries=0)


def create(client: openai.OpenAI, text: str = "Which colour?", **fields: Any) -> Any:
    messages = ask(text, data_url())
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


@pytest.mark.parametrize(
    ("reasoning", "shown"),
    [(None, DETAILED), ("detailed", DETAILED), ("brief", "summary red"), ("none", None)],
)
@pytest.mark.parametrize("method", ["stage_beam", "best_of_n"])
def test_reasoning_is_as_long_as_asked_for_whole_and_streamed(
    client: openai.OpenAI, method: str, reasoning: str | None, shown: str | None
) -> None:
    search = {"method": method} | ({} if reasoning is None else {"reasoning": reasoning})
    message = create(client, extra_body={"search": search}).choices[0].message
    assert message.content == "conclusion red"
    assert getattr(message, "reasoning_content", None) == shown
    chunks = create(client, extra_body={"search": search}, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "conclusion red"
    told = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert ("".join(filter(None, told)) or None) == shown


def test_usage_says_what_the_search_cost(client: openai.OpenAI) -> None:
    usage = create(client).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (40, 60, 100)
    assert usage.search["sequential_passes"] == 20 and usage.search["judge_calls"] == 0
    *_, last = create(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens == 60


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    found = client.models.retrieve(MODEL)
    assert (found.id, found.object, found.owned_by) == (MODEL, "model", "stagebeam")
    with pytest.raises(openai.NotFoundError, match="There is no model 'a/b'"):
        client.models.retrieve("a/b")


def test_the_raw_reply_has_its_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ask("What?"), extra_headers={"x-request-id": "mine-7"}
    )
    assert raw.status_code == 200 and raw.headers["x-request-id"] == "mine-7"
    assert raw.request_id == raw.parse()._request_id == "mine-7"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (408, openai.APIStatusError),
        (413, openai.APIStatusError),
        (415, openai.APIStatusError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_status_raises_the_clients_own_error(
    client: openai.OpenAI, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        create(client, f"status {status}", stream=stream)
    assert caught.value.status_code == status and caught.value.request_id
    assert caught.value.body == {
        "message": "As you wish.",
        "type": ApiError(status, "").body()["error"]["type"],
        "param": None,
        "code": None,
    }


def test_an_error_names_the_field(client: openai.OpenAI) -> None:
    request, _, message = BAD_REQUESTS["too many candidates"]
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, extra_body={"search": request["search"]})
    assert (caught.value.param, caught.value.body["message"]) == ("candidates", message)  # type: ignore[index]


def test_an_error_in_mid_stream_is_raised_too(client: openai.OpenAI) -> None:
    chunks = create(client, "break off", stream=True)
    with pytest.raises(openai.APIError, match="The server failed to answer; its log says why"):
        list(chunks)


def test_a_client_with_a_key_waits_as_long_as_it_is_told() -> None:
    key = Key("client", hashlib.sha256(SECRET.encode()).digest())
    limits = KeysConfig(env=("X",), requests_per_minute=60)
    with served_here(app_of(keys=(key,), keys_config=limits)) as base_url:
        stranger = openai.OpenAI(base_url=f"{base_url}/v1", api_key="sk-no", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="wants an API key"):
            create(stranger)
        hasty = openai.OpenAI(base_url=f"{base_url}/v1", api_key=SECRET, max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            for _ in range(100):
                hasty.models.list()
        assert caught.value.response.headers["retry-after"] == "1"
        patient = openai.OpenAI(base_url=f"{base_url}/v1", api_key=SECRET, max_retries=2)
        started = time.monotonic()
        assert create(patient).choices[0].message.content == "conclusion red"
        assert time.monotonic() - started >= 1


def idle(searcher: LocalSearcher, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while searcher.running and time.monotonic() < deadline:
        time.sleep(0.02)
    return searcher.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_of_the_client_is_its_own_error(client: openai.OpenAI, stream: bool) -> None:
    """That the search ends too is Serve's work: tests/serve/test_serving.py."""
    with pytest.raises(openai.APITimeoutError):
        create(client, "slow", stream=stream, timeout=0.2)


def test_closing_a_stream_ends_the_search(client: openai.OpenAI, searcher: LocalSearcher) -> None:
    assert idle(searcher, 10)
    with create(client, "slow", stream=True) as chunks:
        next(iter(chunks))
        assert searcher.running
    assert idle(searcher, 1)  # by itself it would take 3 seconds


async def test_the_async_client_asks_many_at_once_and_cancels(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:

        def asking(text: str) -> Any:
            return client.chat.completions.create(model=MODEL, messages=ask(text, data_url()))

        replies = await asyncio.gather(*(asking(f"Which? {i}") for i in range(8)))
        assert {reply.choices[0].message.content for reply in replies} == {"conclusion red"}
        stream = await client.chat.completions.create(
            model=MODEL, messages=ask("Which?", data_url()), stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == "conclusion red"
        given_up = asyncio.create_task(asking("slow"))
        await asyncio.sleep(0.1)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert (await asking("Still there?")).choices[0].message.content == "conclusion red"


def test_a_reply_can_be_sent_back_as_it_came(
    client: openai.OpenAI, searcher: LocalSearcher
) -> None:
    first = create(client)
    messages = [*ask("Which colour?", data_url()), first.choices[0].message, *ask("Sure?")]
    client.chat.completions.create(model=MODEL, messages=messages)
    shown = searcher.prompts[-1].messages[1].text
    assert shown == f"{DETAILED}\n<CONCLUSION> conclusion red </CONCLUSION>"
