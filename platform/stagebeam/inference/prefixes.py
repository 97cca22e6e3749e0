"""Keys and values that were computed once, found again by the tokens and images behind them.

A hit saves a prefill and changes no text; a miss costs time. What is kept may be used in part: keys
and values of a token depend on the tokens before it alone.

Shapes: L layers, N key heads, T tokens, D width of a head, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

V = TypeVar("V")
BLOCK = 8  # tokens; shorter beginnings are not looked for


def images_digest(images: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for image in images:
        digest.update(len(image).to_bytes(8, "little") + image)
    return digest.digest()


class LruBytes(Generic[V]):
    """Least-recently-used store bounded by the bytes of its values."""

    def __init__(
        self, capacity: int, size: Callable[[V], int], dropped: Callable[[V], None] | None = None
    ) -> None:
        """`dropped` hears of each value that leaves."""
        self.capacity, self._size, self._used = capacity, size, 0
        self._dropped = dropped or (lambda value: None)
        self._kept: OrderedDict[bytes, V] = OrderedDict()

    def get(self, key: bytes) -> V | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: bytes, value: V) -> None:
        previous = self._kept.pop(key, None)
        if previous is not None:
            self._leaves(previous)
        self._kept[key] = value
        self._used += self._size(value)
        while self._used > self.capacity and self._kept:
            self._leaves(self._kept.popitem(last=False)[1])

    def _leaves(self, value: V) -> None:
        self._used -= self._size(value)
        self._dropped(value)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A row's beginning. `logits` [V] follow its last token, or None where they are not known."""

    digest: bytes  # of the images that it looks at
    ids: NDArray[np.uint32]  # [T]
    kv: torch.Tensor  # [L, 2, N, T, D]
    logits: torch.Tensor | None = None

    @property
    def key(self) -> bytes:
        return hashlib.sha256(self.digest + self.ids.tobytes()).digest()

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes


class PrefixStore:
    """Kept rows, found by the longest beginning that they share with a row that is wanted."""

    def __init__(self, capacity: int) -> None:
        """`capacity` in bytes of keys and values."""
        self._rows: LruBytes[Kept] = LruBytes(capacity, lambda kept: kept.nbytes, self._forget)
        self._by_block: defaultdict[bytes, dict[bytes, Kept]] = defaultdict(dict)

    def find(self, digest: bytes, ids: Sequence[int]) -> tuple[Kept, int] | None:
        """A kept row and how many of `ids` it covers: all of them only where the logits behind
        the last one are kept too."""
        wanted = np.array(ids, np.uint32)
        alike: dict[bytes, Kept] = {}
        for chain in _chain(digest, wanted):
            if chain not in self._by_block:
                break
            alike = self._by_block[chain]
        best: tuple[Kept, int] | None = None
        for kept in alike.values():
            covered = _common(kept.ids, wanted)
            if covered == len(wanted) and not (
                kept.logits is not None and len(kept.ids) == covered
            ):
                covered -= 1
            if best is None or covered > best[1]:
                best = kept, covered
        if best is not None:
            self._rows.get(best[0].key)  # used
        return best

    def put(self, kept: Kept) -> None:
        """Keep it, unless it says less than what is kept of the same tokens."""
        known = self._rows.get(kept.key)
        if known is not None and (known.logits is not None or kept.logits is None):
            return
        key = kept.key
        for chain in _chain(kept.digest, kept.ids):
            self._by_block[chain][key] = kept
        self._rows.put(key, kept)

    def _forget(self, kept: Kept) -> None:
        key = kept.key
        for chain in _chain(kept.digest, kept.ids):
            rows = self._by_block[chain]
            if rows.get(key) is kept:
                del rows[key]
                if not rows:
                    del self._by_block[chain]


def _chain(digest: bytes, ids: NDArray[np.uint32]) -> Iterator[bytes]:
    """A hash for each whole block, of all up to it."""
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        digest = hashlib.blake2b(digest + ids[end - BLOCK : end].tobytes(), digest_size=16).digest()
        yield digest


def _common(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length
