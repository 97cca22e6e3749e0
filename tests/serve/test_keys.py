"""API keys and what each may ask. A key stands in no recipe, reply or log line."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from bad_requests import body
from local_app import app_of
from pydantic import ValidationError

from serve.errors import ApiError
from serve.keys import Key, KeyRing, load_keys
from serve.rates import Rates
from stagebeam.gateway_config import KeysConfig

SECRET, OTHER = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"
PATHS = ("/v1/models", "/v1/models/scripted", "/v1/traces/x", "/v1/chat/completions")


def key(name: str, secret: str) -> Key:
    return Key(name, hashlib.sha256(secret.encode()).digest())


KEYS = (key("alice", SECRET), key("bob", OTHER))


def client_of(secret: str | None = SECRET, **limits: Any) -> httpx.AsyncClient:
    app = app_of(keys=KEYS, keys_config=KeysConfig(env=("UNUSED",), **limits))
    return caller(app, secret)


def caller(app: Any, secret: str | None) -> httpx.AsyncClient:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://gate", headers=headers)


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer ", f"Basic {SECRET}", SECRET, f"Bearer {SECRET}x", "Bearer \xff"],
)
@pytest.mark.parametrize("path", PATHS)
async def test_without_a_known_key_v1_is_closed(path: str, sent: str | None) -> None:
    async with client_of(None) as client:
        headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
        reply = await client.request(
            "POST" if path.endswith("completions") else "GET", path, headers=headers
        )
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"] == {
        "message": "This server wants an API key that it knows: Authorization: Bearer KEY.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }


@pytest.mark.parametrize("path", ["/", "/healthz", "/livez", "/openapi.json"])
async def test_what_shows_no_answers_is_open(path: str) -> None:
    async with client_of(None) as client:
        assert (await client.get(path)).status_code == 200


async def test_a_server_below_a_prefix_is_closed_too() -> None:
    transport = httpx.ASGITransport(app=app_of(keys=KEYS), root_path="/below")
    async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
        assert (await client.get("/below/v1/models")).status_code == 401
        assert (await client.get("/below/livez")).status_code == 200
        login = {"Authorization": f"Bearer {SECRET}"}
        assert (await client.get("/below/v1/models", headers=login)).status_code == 200


async def test_a_known_key_opens_v1_and_its_name_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        async with client_of() as client:
            assert (await client.get("/v1/models")).status_code == 200
            asked = await client.post(
                "/v1/chat/completions", json=body(), headers={"x-request-id": "mine"}
            )
            assert asked.status_code == 200
    finally:
        logger.removeHandler(caplog.handler)
    lines = [record.getMessage() for record in caplog.records]
    assert any("POST /v1/chat/completions 200" in x and "id=mine key=alice" in x for x in lines)
    assert not any(SECRET in line for line in lines)


async def test_a_trace_is_shown_to_the_key_that_asked_for_it() -> None:
    app = app_of(keys=KEYS)
    async with caller(app, SECRET) as alice, caller(app, OTHER) as bob:
        asked = await alice.post("/v1/chat/completions", json=body(search={"include_trace": True}))
        for trace_id in (asked.json()["id"], asked.json()["trace"]["id"]):
            assert (await alice.get(f"/v1/traces/{trace_id}")).status_code == 200
            assert (await bob.get(f"/v1/traces/{trace_id}")).status_code == 404


async def test_a_key_has_so_many_requests_a_minute_and_is_told_what_is_left() -> None:
    app = app_of(keys=KEYS, keys_config=KeysConfig(env=("UNUSED",), requests_per_minute=3))
    async with caller(app, SECRET) as alice, caller(app, OTHER) as bob:
        replies = [await alice.get("/v1/models") for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        left = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]
        assert left == ["2", "1", "0", "0"]
        last = replies[-1]
        assert last.headers["x-ratelimit-limit-requests"] == "3"
        assert float(last.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        assert 15 < int(last.headers["retry-after"]) <= 20
        assert last.json()["error"]["type"] == "requests"
        assert last.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await bob.get("/v1/models")).status_code == 200
        assert (await alice.get("/healthz")).status_code == 200


async def test_a_key_has_so_many_questions_at_the_same_time() -> None:
    async with client_of(concurrent_questions=2) as client:

        async def ask(stream: bool) -> httpx.Response:
            request = body("slow", stream=stream, search={"method": "greedy"})
            return await client.post("/v1/chat/completions", json=request)

        replies = await asyncio.gather(*(ask(bool(i % 2)) for i in range(4)))
        assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429]
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["message"] == (
            "The key alice may ask 2 questions at the same time; wait for an answer."
        )
        assert (await ask(False)).status_code == 200  # the others are done


def test_requests_come_back_as_time_goes_by() -> None:
    now = 1_000.0
    rates = Rates(KeysConfig(env=("X",), requests_per_minute=60), lambda: now)
    for _ in range(60):
        rates.request("a")
    with pytest.raises(ApiError, match="try again in 1 seconds"):
        rates.request("a")
    now += 1
    rates.request("a")
    with pytest.raises(ApiError):
        rates.request("a")
    now += 3_600  # no more than a minute's are saved up
    for _ in range(60):
        rates.request("a")
    with pytest.raises(ApiError):
        rates.request("a")


def test_keys_come_from_variables_and_from_a_file_of_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALICE_KEY", SECRET)
    file = tmp_path / "keys"
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    file.write_text(f"# name, SHA-256\n\nbob {digest.upper()}  # of the lab\n")
    found = load_keys(KeysConfig(env=("ALICE_KEY",), file=file))
    assert found is not None
    ring = KeyRing(found)
    assert [ring.owner(secret) for secret in (SECRET, OTHER, digest, "")] == [
        "ALICE_KEY",
        "bob",
        None,
        None,
    ]
    assert load_keys(None) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bob secret", "is not a name and the SHA-256"),
        ("bob", "is not a name and the SHA-256"),
        (f"b/b {'0' * 64}", "is not a name and the SHA-256"),
        (f"bob {'0' * 64}\nbob {'1' * 64}", "Two API keys have the same name"),
        (f"bob {'0' * 64}\nann {'0' * 64}", "Two API keys have the same key"),
    ],
)
def test_a_file_with_a_slip_is_refused(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(ValueError, match=words):
        load_keys(KeysConfig(file=file))


@pytest.mark.parametrize("value", [None, "", "short"])
def test_a_variable_without_a_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_KEY", value)
    with pytest.raises(ValueError, match=r"NO_KEY holds no API key of 16 characters or more\."):
        load_keys(KeysConfig(env=("NO_KEY",)))


def test_a_file_that_is_not_there_and_a_section_without_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_keys(KeysConfig(file=tmp_path / "none"))
    with pytest.raises(ValidationError, match="keys need env, file or both"):
        KeysConfig()
