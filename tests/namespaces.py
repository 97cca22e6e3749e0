"""Machines with addresses of their own on this one: network namespaces on a bridge. Needs root and
iproute2."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace with one network device, `eth0`; outside, the other end of its cable has the
    place's name."""

    name: str
    address: str

    def within(self, command: list[str], own: Path) -> list[str]:
        """The command as it runs there. What it has in the folder `own` no other place sees."""
        mine = Path(f"{own}-{self.name}")
        mine.mkdir()
        words = shlex.join(["mount", "--bind", str(mine), str(own)])
        there = ["sh", "-c", f'{words} && exec "$@"', "sh", *command]
        return ["ip", "netns", "exec", self.name, *there]

    def cut(self) -> None:
        """Its cable is pulled: nobody hears from it any more, not even that it is gone."""
        _ip("link", "set", self.name, "down")

    def mend(self) -> None:
        _ip("link", "set", self.name, "up")


class Bridge:
    """What the places are connected by; this process's own place is on it too."""

    def __init__(self, number: int) -> None:
        self.name = f"sb{number}"
        self._net, self._places = f"10.213.{number}", 0
        self.address = f"{self._net}.1"

    def add(self) -> Place:
        """A place with the next address."""
        self._places += 1
        place = Place(f"{self.name}n{self._places}", f"{self._net}.{self._places + 1}")
        _ip("netns", "add", place.name)
        device = ("link", "add", place.name, "type", "veth", "peer", "name", "eth0")
        _ip(*device, "netns", place.name)
        _ip("link", "set", place.name, "master", self.name, "up")
        _ip("-n", place.name, "address", "add", f"{place.address}/24", "dev", "eth0")
        for own in ("lo", "eth0"):
            _ip("-n", place.name, "link", "set", own, "up")
        return place

    def remove(self) -> None:
        """With all places on it and their cables, whichever of them were made."""
        for number in range(1, self._places + 1):
            for what in ("netns", "link"):
                words = ["ip", what, "delete", f"{self.name}n{number}"]
                subprocess.run(words, capture_output=True, check=False)
        _ip("link", "delete", self.name)


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


def _why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    if os.geteuid():
        return "network namespaces are root's to make"
    # in a namespace of its own, of which nothing is left
    making = "ip link add br9 type bridge && ip link add left9 type veth peer name right9"
    command = ["unshare", "--net", "sh", "-c", making]
    tried = subprocess.run(command, capture_output=True, check=False)
    said = tried.stderr.decode().strip()
    return f"network namespaces are not permitted: {said}" if tried.returncode else None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


_WITHOUT = _why_not()
# For tests that need them: says what is missing, root's rights, iproute2 or the kernel's leave.
needed = pytest.mark.skipif(_WITHOUT is not None, reason=str(_WITHOUT))
