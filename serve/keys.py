"""API keys: read where the application is built, passed on as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stagebeam.gateway_config import KeysConfig

SHORTEST = 16  # characters; a hash of a short key can be searched through

_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """Who a key belongs to, and its SHA-256."""

    name: str
    digest: bytes


class KeyRing:
    """The keys that open this server."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._keys = keys

    def owner(self, presented: str) -> str | None:
        """The name of a key, None for one that is not on the ring. Looks at all of them, so that
        the time taken says nothing."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        names = [key.name for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return names[0] if names else None


def load_keys(config: KeysConfig | None) -> tuple[Key, ...] | None:
    """The recipe's keys, None where it wants none.

    Raises ValueError with one sentence for a variable without a key, a key that is too short, a
    file that cannot be read, and for a key or a name that comes twice.
    """
    if config is None:
        return None
    keys = [_of_variable(name) for name in config.env]
    if config.file is not None:
        keys += _of_file(config.file)
    for what, values in (("name", [k.name for k in keys]), ("key", [k.digest for k in keys])):
        if len(set(values)) < len(values):
            raise ValueError(f"Two API keys have the same {what}.")
    return tuple(keys)


def _of_variable(name: str) -> Key:
    key = os.environ.get(name, "")
    if len(key) < SHORTEST:
        raise ValueError(
            f"The environment variable {name} holds no API key of {SHORTEST} characters or more."
        )
    return Key(name, hashlib.sha256(key.encode()).digest())


def _of_file(path: Path) -> Iterator[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The file of API keys {path} cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _DIGEST.fullmatch(words[1]):
            raise ValueError(
                f"{path}:{number} is not a name and the SHA-256 of a key in 64 hex digits."
            )
        yield Key(words[0], bytes.fromhex(words[1]))
