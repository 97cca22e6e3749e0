"""Attention that does not copy gives what attention over copies gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stagebeam.models.attention import Shared, attend

HEADS, WIDTH, COLUMNS = 6, 8, 20
CPU = torch.device("cpu")


def module(kept: int) -> SimpleNamespace:
    """What transformers hands over of its layers."""
    return SimpleNamespace(layer_idx=3, num_key_value_groups=HEADS // kept, is_causal=False)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("kept", [1, 2, 6])
def test_query_heads_that_share_a_key_head(kept: int) -> None:
    rows = 5
    query = numbers(rows, HEADS, 1, WIDTH)
    key, value = numbers(rows, kept, COLUMNS, WIDTH), numbers(rows, kept, COLUMNS, WIDTH) + 1
    mask = torch.arange(COLUMNS) <= torch.tensor([3, 19, 0, 7, 7])[:, None]
    call = (query, key, value, mask[:, None, None])
    expected = sdpa_attention_forward(module(kept), *call, scaling=0.3)[0]
    found = attend(module(kept), *call, scaling=0.3)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 0, 2, 1, 1], [2, 1, 0]])
@pytest.mark.parametrize("kept", [2, 6])
def test_rows_that_share_an_image(groups: list[int], kept: int) -> None:
    count = max(groups) + 1
    query = numbers(len(groups), HEADS, 1, WIDTH)
    key, value = numbers(count, kept, COLUMNS, WIDTH), numbers(count, kept, COLUMNS, WIDTH) + 1
    mask = torch.arange(COLUMNS) <= torch.tensor([19, 0, 9])[:count, None]
    mask = mask[:, None, None]
    shared = Shared.of(frozenset({3}), groups, CPU)
    copied = (query, key[groups], value[groups], mask[groups])
    expected = sdpa_attention_forward(module(kept), *copied, scaling=0.3)[0]
    found = attend(module(kept), query, key, value, mask, scaling=0.3, shared=shared)[0]
    torch.testing.assert_close(found, expected)


def test_other_layers_of_such_a_pass_are_left_alone() -> None:
    query, mask = numbers(3, HEADS, 1, WIDTH), torch.ones(3, 1, 1, COLUMNS, dtype=torch.bool)
    key, value = numbers(3, 2, COLUMNS, WIDTH), numbers(3, 2, COLUMNS, WIDTH)
    shared = Shared.of(frozenset({7}), [0, 0, 0], CPU)
    expected = attend(module(2), query, key, value, mask, scaling=0.3)[0]
    found = attend(module(2), query, key, value, mask, scaling=0.3, shared=shared)[0]
    assert found.equal(expected)


@pytest.mark.parametrize("owners", [[0, 0, 0], [0, 1, 1, 1, 2, 3, 3], [0, 1, 2]])
@pytest.mark.parametrize("kept", [1, 2, 6])
def test_tokens_side_by_side_each_see_their_own_row_as_far_as_they_may(
    owners: list[int], kept: int
) -> None:
    rows, ends = max(owners) + 1, torch.randint(COLUMNS, (len(owners),))
    query = numbers(1, HEADS, len(owners), WIDTH)
    key, value = numbers(rows, kept, COLUMNS, WIDTH), numbers(rows, kept, COLUMNS, WIDTH) + 1
    beside = Shared.of(frozenset({3}), owners, CPU)
    mask = (torch.arange(COLUMNS) <= ends[beside.queries][..., None])[:, None]
    found = attend(module(kept), query, key, value, mask, scaling=0.3, beside=beside)[0]
    alone = (torch.arange(COLUMNS) <= ends[:, None])[:, None, None]
    copied = (query.transpose(0, 2), key[owners], value[owners], alone)
    expected = sdpa_attention_forward(module(kept), *copied, scaling=0.3)[0]
    torch.testing.assert_close(found, expected)


def test_tokens_side_by_side_share_an_image_in_the_layers_that_hold_images() -> None:
    owners, groups = [0, 0, 1, 2], [1, 1, 0, 1]  # by token
    query, mask = numbers(1, HEADS, 4, WIDTH), torch.ones(2, 1, 1, COLUMNS, dtype=torch.bool)
    key, value = numbers(2, 2, COLUMNS, WIDTH), numbers(2, 2, COLUMNS, WIDTH) + 1
    beside = Shared.of(frozenset({0}), owners, CPU)
    shared = Shared.of(frozenset({3}), groups, CPU)
    call = (key, value, mask)
    found = attend(module(2), query, *call, scaling=0.3, shared=shared, beside=beside)[0]
    copied = (query.transpose(0, 2), key[groups], value[groups], mask[groups])
    expected = sdpa_attention_forward(module(2), *copied, scaling=0.3)[0]
    torch.testing.assert_close(found, expected)
