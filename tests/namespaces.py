"""Machines of their own addresses on this one: network namespaces on a bridge. Needs root and
iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace with one network device, `eth0`."""

    name: str
    address: str

    @property
    def command(self) -> list[str]:
        """What stands before a command that is to run there."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Whoever speaks with it hears nothing any more, not even that it is gone."""
        _ip("link", "set", self.name, "down")


class Bridge:
    """What the places are connected by; this process's own place is on it too."""

    def __init__(self, number: int) -> None:
        self._number, self._places = number, 0
        self.name = f"sb{number}"
        self.address = self._next_address()

    def add(self) -> Place:
        """A place with the next address."""
        place = Place(f"{self.name}n{self._places}", self._next_address())
        _ip("netns", "add", place.name)
        device = ("link", "add", place.name, "type", "veth", "peer", "name", "eth0")
        _ip(*device, "netns", place.name)
        _ip("link", "set", place.name, "master", self.name, "up")
        _ip("-n", place.name, "address", "add", f"{place.address}/24", "dev", "eth0")
        for own in ("lo", "eth0"):
            _ip("-n", place.name, "link", "set", own, "up")
        return place

    def remove(self) -> None:
        """With all places on it."""
        for number in range(1, self._places):
            subprocess.run(["ip", "netns", "delete", f"{self.name}n{number}"], check=False)
        _ip("link", "delete", self.name)

    def _next_address(self) -> str:
        self._places += 1
        return f"10.213.{self._number}.{self._places}"


@contextmanager
def bridge() -> Iterator[Bridge]:
    """Removed at the end."""
    made = Bridge(os.getpid() % 250 + 1)
    _ip("link", "add", made.name, "type", "bridge")
    try:
        _ip("address", "add", f"{made.address}/24", "dev", made.name)
        _ip("link", "set", made.name, "up")
        yield made
    finally:
        made.remove()


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    tried = subprocess.run(["unshare", "--net", "ip", "link"], capture_output=True, check=False)
    if os.geteuid() or tried.returncode:
        return "network namespaces are not permitted here"
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
