"""Kept rows: bounded by bytes, found by what they begin with, and never for other images."""

from __future__ import annotations

import numpy as np
import torch

from stagebeam.inference.prefixes import BLOCK, Kept, LruBytes, PrefixStore, images_digest

ROW = list(range(100, 100 + 3 * BLOCK))


def store(capacity: int) -> LruBytes[bytes]:
    return LruBytes(capacity, len)


def kept(ids: list[int], digest: bytes = b"image", logits: bool = False) -> Kept:
    """8 bytes of keys and values a token."""
    kv = torch.zeros(1, 2, 1, len(ids), 1)
    return Kept(digest, np.array(ids, np.uint32), kv, torch.zeros(3) if logits else None)


def test_the_least_recently_used_goes_first() -> None:
    some = store(10)
    for key in (b"a", b"b", b"c"):
        some.put(key, bytes(3))
    some.get(b"a")  # now `b` is the oldest
    some.put(b"d", bytes(3))
    assert [key for key in (b"a", b"b", b"c", b"d") if some.get(key)] == [b"a", b"c", b"d"]


def test_bytes_are_what_is_bounded() -> None:
    some = store(10)
    for n in range(10):
        some.put(bytes([n]), b"1")
    some.put(b"large", bytes(6))
    assert sum(some.get(bytes([n])) is not None for n in range(10)) == 4
    assert some.get(b"large") == bytes(6)


def test_putting_a_key_again_replaces_it_and_its_bytes() -> None:
    some = store(10)
    some.put(b"a", bytes(6))
    some.put(b"a", bytes(4))
    some.put(b"b", bytes(6))
    assert some.get(b"a") == bytes(4) and some.get(b"b") == bytes(6)


def test_what_is_larger_than_the_store_is_not_kept() -> None:
    some = store(10)
    some.put(b"a", bytes(11))
    assert some.get(b"a") is None
    some.put(b"b", bytes(10))
    assert some.get(b"b") == bytes(10)


def test_the_longest_common_beginning_is_found_to_the_token() -> None:
    rows = PrefixStore(1 << 20)
    near, far = kept([*ROW, 1, 2, 3]), kept([*ROW[: 2 * BLOCK], 9, 9])
    rows.put(far)
    rows.put(near)
    assert rows.find(b"image", [*ROW, 1, 2, 7, 7]) == (near, len(ROW) + 2)
    assert rows.find(b"image", [*ROW[: 2 * BLOCK], 9, 8, 8]) == (far, 2 * BLOCK + 1)


def test_all_of_a_row_is_found_only_with_what_follows_it() -> None:
    rows = PrefixStore(1 << 20)
    bare = kept(ROW)
    rows.put(bare)
    assert rows.find(b"image", ROW) == (bare, len(ROW) - 1)
    whole = kept(ROW, logits=True)
    rows.put(whole)
    assert rows.find(b"image", ROW) == (whole, len(ROW))
    rows.put(bare)  # which says less
    assert rows.find(b"image", ROW) == (whole, len(ROW))
    assert rows.find(b"image", ROW[:-1]) == (whole, len(ROW) - 2)  # logits of another token


def test_other_images_and_other_beginnings_are_not_found() -> None:
    rows = PrefixStore(1 << 20)
    rows.put(kept(ROW))
    assert rows.find(b"other", ROW) is None
    assert rows.find(b"image", [1, *ROW]) is None
    assert rows.find(b"image", ROW[: BLOCK - 1]) is None  # too short to be looked for


def test_rows_that_left_are_not_found_and_leave_nothing_behind() -> None:
    rows = PrefixStore(8 * len(ROW) * 2)
    for first in range(5):
        rows.put(kept([first, *ROW[1:]]))
    found = [rows.find(b"image", [first, *ROW[1:]]) is not None for first in range(5)]
    assert found == [False, False, False, True, True]
    assert len(rows._by_block) == 2 * 3
    nothing = PrefixStore(0)
    nothing.put(kept(ROW))
    assert nothing.find(b"image", ROW) is None and not nothing._by_block


def test_a_digest_follows_the_images_one_by_one() -> None:
    assert images_digest([b"ab", b"c"]) != images_digest([b"a", b"bc"])
    assert images_digest([b"a", b"b"]) != images_digest([b"b", b"a"])
    assert images_digest([b"a"]) == images_digest([b"a"])
