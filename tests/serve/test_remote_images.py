"""Images by address: only what the operator allows, from a real server on this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from bad_requests import ask, picture
from local_app import LocalSearcher, app_of
from pydantic import ValidationError

from serve.remote_images import Fetcher, is_public
from stagebeam.gateway_config import ImagesConfig

PNG = picture("PNG")


class Pictures(BaseHTTPRequestHandler):
    """What a path begins with says how its answer goes wrong."""

    asked: list[str] = []  # noqa: RUF012 (of the whole server)

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']}{self.path}")
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "missing":
            self.send_error(404)
        elif kind == "slow":
            time.sleep(2)
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b"x")
                time.sleep(0.1)
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x" * 1000)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>" if kind == "page" else PNG)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def config(port: int, **fields: Any) -> ImagesConfig:
    """Of an operator who allows this server, which is on a private address and without TLS."""
    defaults = {
        "allow_hosts": (f"localhost:{port}",),
        "allow_http": True,
        "allow_private": True,
        "max_bytes": 5_000,
        "timeout_s": 0.7,
    }
    return ImagesConfig(**{**defaults, **fields})


async def refusal(images: ImagesConfig, address: str) -> str:
    with pytest.raises(ValueError) as caught:
        await Fetcher(images).fetch(address)
    said = str(caught.value)
    assert said.startswith(f"The image at {address} cannot be fetched: ")
    return said.partition("cannot be fetched: ")[2]


async def test_an_image_of_an_allowed_host_is_fetched_and_searched_with(port: int) -> None:
    searcher = LocalSearcher()
    transport = httpx.ASGITransport(app=app_of(searcher, images=config(port)))
    request = {
        "model": "scripted",
        "messages": ask("What?", f"http://localhost:{port}/a.png?b=1#c"),
    }
    async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
        assert (await client.post("/v1/chat/completions", json=request)).status_code == 200
    assert searcher.prompts[0].images == (PNG,)
    assert Pictures.asked[-1] == f"localhost:{port}/a.png?b=1"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("page", "The image cannot be decoded; it must be one of PNG, JPEG, WEBP, GIF, BMP."),
        ("missing", "cannot be fetched: its server answers with status 404."),
    ],
)
async def test_what_comes_must_be_an_image(port: int, path: str, message: str) -> None:
    transport = httpx.ASGITransport(app=app_of(images=config(port)))
    request = {"model": "scripted", "messages": ask("What?", f"http://localhost:{port}/{path}")}
    async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
        reply = await client.post("/v1/chat/completions", json=request)
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]
    assert reply.json()["error"]["param"] == "messages"


async def test_only_listed_hosts_are_asked(port: int) -> None:
    images = config(port)
    before = len(Pictures.asked)
    for address, host in (
        (f"http://127.0.0.1:{port}/a", f"127.0.0.1:{port}"),
        (f"http://localhost.:{port}/a", f"localhost.:{port}"),
        (f"http://localhost:{port + 1}/a", f"localhost:{port + 1}"),
        ("http://localhost/a", "localhost"),
        ("http://[::1]/a", "[::1]"),
        (f"http://example.org#@localhost:{port}/a", "example.org"),
    ):
        assert await refusal(images, address) == f"this server does not fetch from {host}."
    assert len(Pictures.asked) == before


async def test_addresses_that_are_no_plain_https_are_refused(port: int) -> None:
    strict = config(port, allow_http=False)
    for address in (
        f"http://localhost:{port}/a",
        "ftp://localhost/a",
        "file:///etc/passwd",
        "a.png",
    ):
        assert await refusal(strict, address) == "this server fetches over https alone."
    lax = config(port)
    assert (
        await refusal(lax, f"http://user:pass@localhost:{port}/a")
        == "the address must not hold a name or password."
    )
    assert await refusal(lax, "http://[::1") == "the address is not a URL."
    assert (
        await refusal(lax, "ftp://localhost/a") == "this server fetches over https and http alone."
    )


async def test_a_long_address_is_refused_and_shown_in_part(port: int) -> None:
    address = f"http://localhost:{port}/{'a' * 3_000}"
    with pytest.raises(ValueError) as caught:
        await Fetcher(config(port)).fetch(address)
    assert str(caught.value) == (
        f"The image at {address[:200]}... cannot be fetched: the address has more than 2048 "
        "characters."
    )


async def test_private_addresses_are_not_connected_to(port: int) -> None:
    before = len(Pictures.asked)
    guarded = config(port, allow_private=False)
    said = await refusal(guarded, f"http://localhost:{port}/a")
    assert said == "its host has an address that is not public."
    assert len(Pictures.asked) == before


async def test_the_address_that_was_checked_is_the_one_connected_to(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is checked and private a moment later gains nothing."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["203.0.113.9"] if len(asked) > 1 else ["127.0.0.1"]

    monkeypatch.setattr("serve.remote_images._resolve", resolve)
    images = config(port, allow_hosts=(f"images.example:{port}",))
    assert await Fetcher(images).fetch(f"http://images.example:{port}/a") == PNG
    assert asked == ["images.example"]
    assert Pictures.asked[-1] == f"images.example:{port}/a"


async def test_one_private_address_among_public_ones_is_enough(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.215.14", "127.0.0.1"]

    monkeypatch.setattr("serve.remote_images._resolve", resolve)
    guarded = config(port, allow_private=False)
    said = await refusal(guarded, f"http://localhost:{port}/a")
    assert said == "its host has an address that is not public."


async def test_redirects_stay_on_their_host(port: int) -> None:
    images = config(port, allow_hosts=(f"localhost:{port}", f"127.0.0.1:{port}", "localhost"))
    base = f"http://localhost:{port}"
    assert await Fetcher(images).fetch(f"{base}/moved/{base}/a.png") == PNG
    assert await Fetcher(images).fetch(f"{base}/moved//a.png") == PNG
    for target, why in (
        (f"http://127.0.0.1:{port}/a", "it redirects to another host."),
        ("http://169.254.169.254/latest", "this server does not fetch from 169.254.169.254."),
        ("file:///etc/passwd", "this server fetches over https and http alone."),
        (f"{base}/moved/" * 4 + base, "it redirects more than 3 times."),
    ):
        assert await refusal(images, f"{base}/moved/{target}") == why


async def test_size_and_time_are_bounded_while_it_arrives(port: int) -> None:
    base = f"http://localhost:{port}"
    assert await refusal(config(port), f"{base}/endless") == "it is larger than 5000 bytes."
    for path in ("slow", "drip"):
        said = await refusal(config(port), f"{base}/{path}")
        assert said == "it took longer than 0.7 seconds."


async def test_a_host_that_does_not_answer_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        said = await refusal(config(port), f"http://localhost:{port}/a")
    assert said == "its server cannot be reached or breaks off."
    nowhere = config(1, allow_hosts=("nowhere.invalid",), timeout_s=5)
    said = await refusal(nowhere, "https://nowhere.invalid/a")
    assert said == "its host is not known."


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_what_counts_as_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["https://a.org", "a.org/b", "*.a.org", "", "a.org:x", "a b"])
def test_a_host_in_a_recipe_is_a_host(host: str) -> None:
    with pytest.raises(ValidationError, match="is not a host"):
        ImagesConfig(allow_hosts=(host,))
