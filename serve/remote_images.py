"""Images that a request names by address, from hosts that the operator allows.

A name is resolved once, every address it has is checked, and the connection goes to a checked
address: a name that resolves differently a moment later (DNS rebinding) gains nothing. TLS still
verifies the name. Redirects are followed on the same host alone, through the same checks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from stagebeam.gateway_config import ImagesConfig

_REDIRECTS = 3
_MOVED = (301, 302, 303, 307, 308)
_LONGEST_URL = 2048
_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(ValueError):
    """Why an image was not fetched, as the end of a sentence."""


class Fetcher:
    """Fetches what `config` allows."""

    def __init__(self, config: ImagesConfig) -> None:
        self._config = config
        self._network = _CheckedNetwork(config.allow_private)
        self._tls = ssl.create_default_context()

    async def fetch(self, address: str) -> bytes:
        """The bytes at an address. Raises ValueError with one sentence for the user."""
        shown = address if len(address) <= 200 else f"{address[:200]}..."
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._followed(self._allowed(address))
        except TimeoutError:
            why = f"it took longer than {self._config.timeout_s:g} seconds"
        except FetchError as error:
            why = str(error)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            why = "its server cannot be reached or breaks off"
        raise ValueError(f"The image at {shown} cannot be fetched: {why}.")

    def _allowed(self, address: str) -> httpx.URL:
        if len(address) > _LONGEST_URL:
            raise FetchError(f"the address has more than {_LONGEST_URL} characters")
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, UnicodeError):
            raise FetchError("the address is not a URL") from None
        schemes = ("https", "http") if self._config.allow_http else ("https",)
        if url.scheme not in schemes:
            raise FetchError(f"this server fetches over {' and '.join(schemes)} alone")
        if url.userinfo:
            raise FetchError("the address must not hold a name or password")
        if _authority(url) not in self._config.allow_hosts:
            raise FetchError(f"this server does not fetch from {_authority(url) or 'nowhere'}")
        return url

    async def _followed(self, url: httpx.URL) -> bytes:
        home = url.host
        for _ in range(1 + _REDIRECTS):
            found = await self._read(url)
            if isinstance(found, bytes):
                return found
            url = self._allowed(str(url.join(found)))
            if url.host != home:
                raise FetchError("it redirects to another host")
        raise FetchError(f"it redirects more than {_REDIRECTS} times")

    async def _read(self, url: httpx.URL) -> bytes | str:
        """The body of one response, or where it redirects to."""
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._tls, network_backend=self._network, keepalive_expiry=0
            ) as pool,
            pool.stream(
                "GET",
                str(url.copy_with(fragment=None)),
                headers={"Host": url.netloc, "Accept": "image/*", "Accept-Encoding": "identity"},
            ) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _MOVED and b"location" in headers:
                return headers[b"location"].decode("latin-1")
            if response.status != 200:
                raise FetchError(f"its server answers with status {response.status}")
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._config.max_bytes:
                    raise FetchError(f"it is larger than {self._config.max_bytes} bytes")
            return bytes(body)


def _authority(url: httpx.URL) -> str:
    """As `allow_hosts` names it: with the port only where that is not the scheme's."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    usual = url.port is None or url.port == _PORTS.get(url.scheme)
    return host.lower() if usual else f"{host.lower()}:{url.port}"


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that may be connected to."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        if not self._allow_private and not all(map(is_public, addresses)):
            raise FetchError("its host has an address that is not public")
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, None, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, None, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError("its host is not known") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, and no other wrapped in one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # with a scope, such as fe80::1%eth0
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(is_public(str(one)) for one in inner if one is not None):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
