"""Kept rows: bounded by bytes, found by content, and padded without loss."""

from __future__ import annotations

import torch

from stagebeam.inference.kv import (
    KeptRow,
    LayerKV,
    LruBytes,
    as_cache,
    images_digest,
    layers_of,
    pad_left,
    row_key,
    trim_left,
)

GROWS = (True, False, True)


def store(capacity: int) -> LruBytes[bytes]:
    return LruBytes(capacity, len)


def layers(rows: int = 2, tokens: int = 4) -> tuple[LayerKV, ...]:
    made = torch.Generator().manual_seed(0)
    lengths = [tokens if grow else 7 for grow in GROWS]
    shapes = [(rows, 2, length, 3) for length in lengths]
    return tuple((torch.randn(s, generator=made), torch.randn(s, generator=made)) for s in shapes)


def same(a: tuple[LayerKV, ...], b: tuple[LayerKV, ...]) -> bool:
    return all(x.equal(y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def test_the_least_recently_used_goes_first() -> None:
    kept = store(10)
    for key in (b"a", b"b", b"c"):
        kept.put(key, bytes(3))
    kept.get(b"a")  # now `b` is the oldest
    kept.put(b"d", bytes(3))
    assert [key for key in (b"a", b"b", b"c", b"d") if kept.get(key) is not None] == [
        b"a",
        b"c",
        b"d",
    ]


def test_bytes_are_what_is_bounded() -> None:
    kept = store(10)
    for n in range(10):
        kept.put(bytes([n]), b"1")
    kept.put(b"large", bytes(6))
    assert sum(kept.get(bytes([n])) is not None for n in range(10)) == 4
    assert kept.get(b"large") == bytes(6)


def test_putting_a_key_again_replaces_it_and_its_bytes() -> None:
    kept = store(10)
    kept.put(b"a", bytes(6))
    kept.put(b"a", bytes(4))
    kept.put(b"b", bytes(6))
    assert kept.get(b"a") == bytes(4) and kept.get(b"b") == bytes(6)


def test_what_is_larger_than_the_store_is_not_kept() -> None:
    kept = store(10)
    kept.put(b"a", bytes(11))
    assert kept.get(b"a") is None
    kept.put(b"b", bytes(10))
    assert kept.get(b"b") == bytes(10)


def test_a_row_weighs_all_its_keys_and_values() -> None:
    row = KeptRow(layers(rows=1), 4, None)
    assert row.nbytes == 4 * 2 * 2 * 3 * (4 + 7 + 4)  # float32, keys and values, heads, width


def test_padding_and_trimming_are_inverse() -> None:
    before = layers()
    padded = pad_left(before, GROWS, 3)
    assert [k.shape[2] for k, _ in padded] == [7, 7, 7]
    assert not padded[0][0][:, :, :3].any() and padded[0][0][:, :, 3:].equal(before[0][0])
    assert same(trim_left(padded, GROWS, 3), before)
    assert same(pad_left(before, GROWS, 0), before)
    assert same(trim_left(before, GROWS, 0), before)


def test_layers_of_the_image_are_neither_padded_nor_trimmed() -> None:
    before = layers()
    for change in (pad_left, trim_left):
        after = change(before, GROWS, 2)
        assert after[1][0].equal(before[1][0]) and after[1][1].equal(before[1][1])


def test_layers_pass_through_a_transformers_cache() -> None:
    assert same(layers_of(as_cache(layers())), layers())


def test_a_key_follows_images_and_tokens() -> None:
    one, two = images_digest([b"ab", b"c"]), images_digest([b"a", b"bc"])
    keys = [row_key(one, [1, 2]), row_key(two, [1, 2]), row_key(one, [2, 1]), row_key(one, [1])]
    assert len(set(keys)) == 4
    assert row_key(images_digest([b"ab", b"c"]), [1, 2]) == keys[0]
