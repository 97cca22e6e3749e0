"""The engine for OpenAI-compatible servers, against a local one with a script."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Any

import pytest
from asking import answers, request
from chat_world import CACHED, LOGPROB, Chat, chatting, engine_config

from stagebeam.inference.chat_server import ChatServer, ServerError
from stagebeam.inference.openai_engine import OpenAIEngine
from stagebeam.inference.types import Candidate, GenerateRequest, Prompt, Sampling
from stagebeam.records import Example, Message

STOP = "</SUMMARY>"
TAGGED = f"<SUMMARY> look {STOP} and more"

MakeEngine = Callable[..., OpenAIEngine]


@pytest.fixture
def ask_server() -> Iterator[MakeEngine]:
    """An engine over a server with this behaviour."""
    with ExitStack() as stack:

        def make(chat: Chat, **server: Any) -> OpenAIEngine:
            url = stack.enter_context(chatting(chat))
            return OpenAIEngine(ChatServer(engine_config(url, **server)))

        yield make


def plain(
    *, prefix: str = "", seeds: tuple[int, ...] = (0,), seconds: float | None = None
) -> GenerateRequest:
    prompt = Prompt((Message("user", "What is it?"),))
    return GenerateRequest(prompt, prefix, (STOP,), seeds, Sampling(), seconds)


def words(count: int) -> str:
    return " ".join(["word"] * count)


async def only(engine: OpenAIEngine, asked: GenerateRequest) -> Candidate:
    ((candidate,), _) = await answers(engine, asked)
    return candidate


async def test_a_call_says_all_that_the_server_needs(
    ask_server: MakeEngine, scenes: list[Example]
) -> None:
    chat = Chat()
    example = next(e for e in scenes if e.images)
    asked = request(example, prefix="<SUMMARY> a", stop=STOP, temperature=0.6, top_p=0.9)
    await answers(ask_server(chat), replace(asked, seeds=(2**62 + 5,)))
    (body,) = chat.requests
    question, prefix = body.pop("messages")
    image, text = question["content"]
    url = image["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == example.images[0].bytes
    assert text["text"] == example.messages[0].text
    assert prefix == {"role": "assistant", "content": "<SUMMARY> a"}
    assert body == {
        "model": "scripted",
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 24,
        "seed": 5,  # of 31 bits
        "stop": [STOP],
        "include_stop_str_in_output": True,
        "no_stop_trim": True,
        "continue_final_message": True,
        "add_generation_prompt": False,
        "logprobs": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_without_a_prefix_nothing_is_continued(ask_server: MakeEngine) -> None:
    chat = Chat()
    await answers(ask_server(chat), plain())
    (body,) = chat.requests
    assert [m["role"] for m in body["messages"]] == ["user"]
    assert "continue_final_message" not in body and "add_generation_prompt" not in body


async def test_every_seed_is_a_request_of_its_own_and_they_run_at_once(
    ask_server: MakeEngine,
) -> None:
    chat = Chat(says=lambda body: words(body["seed"]), pause_s=0.2)
    found, usage = await answers(ask_server(chat), plain(seeds=(4, 2, 3)))
    assert [(c.index, c.tokens) for c in found] == [(0, 4), (1, 2), (2, 3)]
    assert all(c.logprob == pytest.approx(LOGPROB * c.tokens) for c in found)
    assert chat.most_running == 3
    assert usage.decode_tokens == 9
    assert usage.sequential_passes == 4  # the longest candidate
    assert usage.prefill_tokens == 3 * (3 - CACHED)
    assert usage.cache_hits == 1 and usage.image_encodes == 0


async def test_candidates_come_as_they_finish(ask_server: MakeEngine) -> None:
    chat = Chat(says=lambda body: words(body["seed"] + 1), pause_s=0.03)
    order = [
        item.index
        async for item in ask_server(chat).propose(plain(seeds=(9, 0)))
        if isinstance(item, Candidate)
    ]
    assert order == [1, 0]


@pytest.mark.parametrize("stops", ["kept", "named"])
async def test_a_stop_tag_is_in_the_text_whether_the_server_keeps_it_or_names_it(
    stops: Any, ask_server: MakeEngine
) -> None:
    found = await only(ask_server(Chat(says=lambda body: TAGGED, stops=stops)), plain())
    assert found.finish == "stop"
    assert found.text == f"<SUMMARY> look {STOP}"


async def test_the_end_of_a_turn_is_not_a_stop(ask_server: MakeEngine) -> None:
    for stops in ("kept", "named"):
        found = await only(ask_server(Chat(stops=stops)), plain())  # type: ignore[arg-type]
        assert (found.text, found.finish) == ("one two three", "end")


async def test_the_length_limit_is_told(ask_server: MakeEngine) -> None:
    asked = replace(plain(), sampling=Sampling(max_new_tokens=2))
    found = await only(ask_server(Chat()), asked)
    assert (found.text, found.finish, found.tokens) == ("one two", "length", 2)


async def test_a_server_without_extensions_is_sent_none_and_left_at_the_stop(
    ask_server: MakeEngine,
) -> None:
    chat = Chat(says=lambda body: TAGGED + " word" * 500, pause_s=0.02)
    found = await only(ask_server(chat, extensions=False), plain())
    assert (found.text, found.finish) == (f"<SUMMARY> look {STOP}", "stop")
    assert found.tokens == 3
    assert (
        chat.requests[0].keys().isdisjoint({"stop", "include_stop_str_in_output", "no_stop_trim"})
    )
    await _until(lambda: chat.left == 1)


async def test_a_server_without_extensions_cannot_continue(ask_server: MakeEngine) -> None:
    with pytest.raises(ValueError, match="cannot continue an answer"):
        await only(ask_server(Chat(), extensions=False), plain(prefix="<SUMMARY> a"))


@pytest.mark.parametrize("logprobs", ["none", "refused"])
async def test_a_server_without_logprobs_gives_zero(logprobs: Any, ask_server: MakeEngine) -> None:
    chat = Chat(logprobs=logprobs)
    engine = ask_server(chat, retries=0)
    for _ in range(2):
        assert (await only(engine, plain())).logprob == 0
    assert len(chat.requests) == (3 if logprobs == "refused" else 2)  # told once


async def test_without_usage_tokens_are_counted_as_they_arrive(ask_server: MakeEngine) -> None:
    for logprobs in ("given", "none"):
        chat = Chat(usage=False, logprobs=logprobs)  # type: ignore[arg-type]
        assert (await only(ask_server(chat), plain())).tokens == 3


@pytest.mark.parametrize("fault", ["429", "500", "cut", "page"])
async def test_a_failure_in_passing_is_tried_again(fault: str, ask_server: MakeEngine) -> None:
    chat = Chat(faults=[fault, fault])
    started = time.monotonic()
    found, usage = await answers(ask_server(chat), plain())
    assert found[0].text == "one two three" and found[0].tokens == 3
    assert usage.decode_tokens == 3  # what broke off is not counted
    assert len(chat.requests) == 3
    if fault == "429":
        assert time.monotonic() - started > 0.55  # as the server asked


async def test_a_server_that_is_not_there_ends_in_one_sentence() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        engine = OpenAIEngine(ChatServer(engine_config(url, retries=1)))
        with pytest.raises(ServerError, match=rf"The server at {url} failed 2 times, .*\.$"):
            await only(engine, plain())


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, ServerError, "refuses the key; set the environment variable STAGEBEAM_TEST_KEY"),
        (404, ServerError, "does not know the model scripted"),
        (400, ValueError, "refuses the request"),
        (503, ServerError, "failed 4 times"),
    ],
)
async def test_other_errors_are_told_in_one_sentence(
    status: int, kind: type[Exception], says: str, ask_server: MakeEngine
) -> None:
    chat = Chat(status=status)
    engine = ask_server(chat, api_key_env="STAGEBEAM_TEST_KEY")
    with pytest.raises(kind, match=says) as raised:
        await only(engine, plain())
    assert str(raised.value).count(". ") == 0 and str(raised.value).endswith(".")
    assert len(chat.requests) == (4 if status == 503 else 1)


async def test_the_key_comes_from_the_environment(
    ask_server: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEBEAM_TEST_KEY", "sesame")
    chat = Chat()
    engine = ask_server(chat, api_key_env="STAGEBEAM_TEST_KEY")
    await only(engine, plain())
    assert chat.keys == ["Bearer sesame"]
    assert "sesame" not in engine.fingerprint


async def test_who_leaves_ends_the_work_of_the_server(ask_server: MakeEngine) -> None:
    chat = Chat(says=lambda body: words(1 + 999 * body["seed"]), pause_s=0.01)
    async with aclosing(ask_server(chat).propose(plain(seeds=(0, 1, 1)))) as items:  # type: ignore[type-var]
        first = await anext(items)
        assert isinstance(first, Candidate) and first.index == 0
    await _until(lambda: chat.left == 2 and chat.running == 0)


async def test_a_cancelled_call_ends_the_work_of_the_server(ask_server: MakeEngine) -> None:
    chat = Chat(says=lambda body: words(1000), pause_s=0.01)
    call = asyncio.create_task(answers(ask_server(chat), plain(seeds=(0, 1))))
    await _until(lambda: chat.sent > 4)
    call.cancel()
    await _until(lambda: chat.left == 2 and chat.running == 0)


async def test_the_time_limit_cuts_with_what_has_come(ask_server: MakeEngine) -> None:
    chat = Chat(says=lambda body: "one" if body["seed"] else words(1000), pause_s=0.05)
    started = time.monotonic()
    (long, short), usage = await answers(ask_server(chat), plain(seeds=(0, 1), seconds=2))
    assert time.monotonic() - started < 20
    assert (short.text, short.finish) == ("one", "end")
    assert long.finish == "length" and 0 < long.tokens < 41
    assert long.text.split() == ["word"] * long.tokens
    assert long.logprob == pytest.approx(LOGPROB * long.tokens)
    assert usage.decode_tokens == long.tokens + 1
    await _until(lambda: chat.left == 1)


async def test_a_server_that_only_fails_until_the_time_is_over_is_an_error(
    ask_server: MakeEngine,
) -> None:
    chat = Chat(status=500)
    engine = ask_server(chat, retries=50, retry_wait_s=0.1)
    with pytest.raises(ServerError, match="failed"):
        await only(engine, plain(seconds=3))


async def test_no_more_requests_run_than_the_recipe_allows(ask_server: MakeEngine) -> None:
    chat = Chat(pause_s=0.01)
    with chatting(chat) as url:
        config = engine_config(url)
        scaling = config.scaling.model_copy(update={"max_batch_rows": 2})
        engine = OpenAIEngine(ChatServer(config.model_copy(update={"scaling": scaling})))
        await answers(engine, plain(seeds=tuple(range(6))))
    assert chat.most_running == 2


def test_an_engine_serves_one_event_loop_after_another() -> None:
    with chatting(Chat()) as url:
        engine = OpenAIEngine(ChatServer(engine_config(url)))
        for _ in range(2):
            assert asyncio.run(only(engine, plain())).text == "one two three"
        engine.close()


async def test_an_image_that_cannot_be_read_is_refused(ask_server: MakeEngine) -> None:
    asked = replace(plain(), prompt=Prompt((Message("user", "What?"),), (b"no image",)))
    with pytest.raises(ValueError, match="An image cannot be decoded"):
        await only(ask_server(Chat()), asked)


@pytest.mark.parametrize(
    "marker",
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<\uff5cUser\uff5c>",
        "</s>",
        "[INST]",
        "<end_of_turn>",
        "<image>",
    ],
)
async def test_what_the_server_may_take_for_a_marker_is_refused(
    ask_server: MakeEngine, marker: str
) -> None:
    """It tokenises what it is sent: here nobody can make words of it."""
    chat = Chat()
    asked = replace(plain(), prompt=Prompt((Message("user", f"Say {marker} now"),)))
    with pytest.raises(ValueError, match="may be a marker of the model's chat template"):
        await only(ask_server(chat), asked)
    assert chat.requests == []


async def test_signs_that_are_no_markers_are_sent_on(ask_server: MakeEngine) -> None:
    chat = Chat()
    text = "a <b> and <| c |> or [x] </SUMMARY> 3<4>2 |> <|>"
    await only(ask_server(chat), replace(plain(), prompt=Prompt((Message("user", text),))))
    assert chat.requests[0]["messages"][0]["content"] == text


async def test_an_image_goes_with_its_turn(ask_server: MakeEngine, scenes: list[Example]) -> None:
    chat = Chat()
    image = next(e for e in scenes if e.images).images[0].bytes
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    await only(ask_server(chat), replace(plain(), prompt=Prompt(turns, (image, image), (0, 2))))
    sent = [message["content"] for message in chat.requests[0]["messages"]]
    assert [[part["type"] for part in sent[turn]] for turn in (0, 2)] == [["image_url", "text"]] * 2
    assert sent[1] == "b"


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)
