"""Keys and values of single rows, kept by the tokens and images that they encode.

A kept row lets a later call skip its prefill. Everything is found by content: a miss costs time
and changes nothing. Shapes: L layers, H heads, T tokens or S vision tokens, D width of a head.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from transformers import DynamicCache

V = TypeVar("V")
LayerKV = tuple[torch.Tensor, torch.Tensor]  # keys and values, [R, H, T, D] (or S for T)


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One row. `logits` [V] follow its last token, or None where they were never computed."""

    layers: tuple[LayerKV, ...]  # R is 1
    length: int  # tokens covered
    logits: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for pair in self.layers for t in pair)


def row_key(images_digest: bytes, ids: Sequence[int]) -> bytes:
    """What a row's keys and values follow from."""
    return hashlib.sha256(images_digest + b"".join(i.to_bytes(4, "little") for i in ids)).digest()


def images_digest(images: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for image in images:
        digest.update(len(image).to_bytes(8, "little") + image)
    return digest.digest()


class LruBytes(Generic[V]):
    """Least-recently-used store bounded by the bytes of its values."""

    def __init__(self, capacity: int, size: Callable[[V], int]) -> None:
        self.capacity, self._size, self._used = capacity, size, 0
        self._kept: OrderedDict[bytes, V] = OrderedDict()

    def get(self, key: bytes) -> V | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: bytes, value: V) -> None:
        previous = self._kept.pop(key, None)
        if previous is not None:
            self._used -= self._size(previous)
        self._kept[key] = value
        self._used += self._size(value)
        while self._used > self.capacity and self._kept:
            self._used -= self._size(self._kept.popitem(last=False)[1])


def as_cache(layers: Sequence[LayerKV]) -> DynamicCache:
    """A transformers cache over these tensors (not copied)."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def layers_of(cache: DynamicCache) -> tuple[LayerKV, ...]:
    layers: list[Any] = cache.layers
    return tuple((layer.keys, layer.values) for layer in layers)


def pad_left(layers: Sequence[LayerKV], grows: Sequence[bool], by: int) -> tuple[LayerKV, ...]:
    """Empty room before the first token in every layer that grows with the text."""
    if not by:
        return tuple(layers)
    pad = torch.nn.functional.pad
    return tuple(
        (pad(k, (0, 0, by, 0)), pad(v, (0, 0, by, 0))) if grow else (k, v)
        for (k, v), grow in zip(layers, grows, strict=True)
    )


def trim_left(layers: Sequence[LayerKV], grows: Sequence[bool], by: int) -> tuple[LayerKV, ...]:
    """The opposite of `pad_left`."""
    if not by:
        return tuple(layers)
    return tuple(
        (k[:, :, by:], v[:, :, by:]) if grow else (k, v)
        for (k, v), grow in zip(layers, grows, strict=True)
    )
