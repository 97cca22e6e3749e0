"""Slots: rows come, go and are forked without touching the others."""

from __future__ import annotations

import pytest
import torch

from stagebeam.inference.slots import COLUMNS, SlotCache, Slots, rounded
from stagebeam.models.runtime import KvShape

SHAPE = KvShape(layers=(0, 2), heads=3, width=4)  # of three layers; the second holds images
CPU = torch.device("cpu")


def filled(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def cache() -> SlotCache:
    return SlotCache(SHAPE, 3, torch.float32, CPU)


def test_a_row_is_taken_as_it_was_put_into_each_of_its_forks() -> None:
    slots = Slots(SHAPE, torch.float32, CPU)
    slots.reserve(5, 10)
    slots.put(1, 3, filled(7))
    for row in (1, 2, 3):
        assert slots.take(row, 7).equal(filled(7))
    assert not slots.take(0, 7).any() and not slots.take(4, 7).any()


def test_growing_keeps_every_row() -> None:
    slots = Slots(SHAPE, torch.float32, CPU)
    slots.reserve(2, 10)
    slots.put(0, 1, filled(9))
    slots.put(1, 1, filled(10, seed=1))
    slots.reserve(40, 10)
    slots.reserve(3, 500)
    assert slots.take(0, 9).equal(filled(9)) and slots.take(1, 10).equal(filled(10, seed=1))


def test_growing_is_rare() -> None:
    """Rows and columns that are added one by one move what is there a few times only."""
    slots, sizes = Slots(SHAPE, torch.float32, CPU), set()
    for count in range(1, 1000):
        slots.reserve(min(count, 64), count)
        sizes.add(tuple(slots.kv.shape))
    assert len(sizes) < 14


def test_a_moved_row_is_the_same_row() -> None:
    slots = Slots(SHAPE, torch.float32, CPU)
    slots.reserve(3, 10)
    slots.put(2, 1, filled(6))
    slots.move(2, 0, 6)
    assert slots.take(0, 6).equal(filled(6))


def test_each_row_s_token_goes_behind_what_it_has() -> None:
    rows = cache()
    rows.aim_at_ends(torch.tensor([2, 5, 0]), 5)
    new = torch.randn(3, 3, 1, 4)
    keys, values = rows.update(new, new + 1, 2)
    assert keys.shape == (3, 3, COLUMNS, 4)
    for row, column in enumerate((2, 5, 0)):
        assert keys[row, :, column].equal(new[row, :, 0])
        assert values[row, :, column].equal(new[row, :, 0] + 1)
    assert int(keys.any(-1).any(1).sum()) == 3  # and nowhere else
    assert not rows.slots.kv[0].any()  # nor in the other layer


def test_tokens_side_by_side_go_to_their_rows_and_places() -> None:
    rows = cache()
    owners, columns = [0, 0, 1, 2, 2, 2], [2, 3, COLUMNS, 7, 8, 9]
    rows.aim_at(3, torch.tensor(owners), torch.tensor(columns), COLUMNS)
    new = torch.randn(1, 3, 6, 4)
    keys, values = rows.update(new, new + 1, 2)
    assert keys.shape == (3, 3, 2 * COLUMNS, 4)
    for token, (row, column) in enumerate(zip(owners, columns, strict=True)):
        assert keys[row, :, column].equal(new[0, :, token])
        assert values[row, :, column].equal(new[0, :, token] + 1)
    assert int(keys.any(-1).any(1).sum()) == 6  # and nowhere else
    rows.aim_at_ends(torch.tensor([4, 0, 10]), 10)  # as if nothing had been
    rows.update(new[:, :, :3].transpose(0, 2), new[:, :, :3].transpose(0, 2), 2)
    assert rows.slots.kv[1, 0, 2, :, 10].equal(new[0, :, 2])


def test_a_row_that_is_read_gets_its_tokens_side_by_side() -> None:
    rows = cache()
    rows.aim_at_row(4, 3)
    new = torch.randn(1, 3, 3, 4)
    keys, _ = rows.update(new, new, 0)
    assert keys.shape == (1, 3, 7, 4) and keys[:, :, 4:].equal(new)


def test_layers_that_hold_images_are_shown_them_and_are_empty_otherwise() -> None:
    rows = cache()
    assert not rows.layers[1].is_initialized
    images = torch.randn(1, 2, 2, 3, 9, 4)
    rows.show(images)
    assert rows.layers[1].keys.equal(images[0, 0]) and rows.layers[1].values.equal(images[0, 1])
    with pytest.raises(AssertionError):
        rows.update(images[0, 0], images[0, 1], 1)
    rows.show(None)
    assert not rows.layers[1].is_initialized


def test_columns_come_in_blocks() -> None:
    assert [rounded(n) for n in (1, COLUMNS, COLUMNS + 1)] == [COLUMNS, COLUMNS, 2 * COLUMNS]
