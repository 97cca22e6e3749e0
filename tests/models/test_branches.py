"""Attention over a tree in stretches gives what attention over all of it gives."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stagebeam.inference.tree import Tree, plant, stretches
from stagebeam.models.attention import attend
from stagebeam.models.branches import Branches, Stretch

HEADS, WIDTH, LAYER, START = 6, 8, 3, 4


def a_tree() -> Tree:
    luck = random.Random(0)
    head = [1] * START + [2, 3, 4]
    return plant([head + luck.choices(range(3), k=luck.randrange(2, 9)) for _ in range(12)], START)


def branches(tree: Tree, size: int) -> Branches:
    parts = (
        Stretch(
            slice(each.first, each.end),
            each.columns if isinstance(each.columns, slice) else torch.from_numpy(each.columns),
            torch.from_numpy(each.added)[None, None],
        )
        for each in stretches(tree, size)
    )
    return Branches(frozenset({LAYER}), tuple(parts))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def module(kept: int, layer: int = LAYER) -> SimpleNamespace:
    return SimpleNamespace(layer_idx=layer, num_key_value_groups=HEADS // kept, is_causal=True)


@pytest.mark.parametrize("size", [1, 5, 16, 99])
@pytest.mark.parametrize("kept", [1, 2, 6])
def test_stretches_together_are_the_whole(kept: int, size: int) -> None:
    tree = a_tree()
    count = len(tree.ids)
    whole = torch.zeros(count, START + count, dtype=torch.bool)
    whole[:, :START] = True
    for path in tree.paths:
        for length, place in enumerate(path, 1):
            whole[place, [START + other for other in path[:length]]] = True
    query = numbers(1, HEADS, count, WIDTH)
    key = numbers(1, kept, START + count, WIDTH)
    value = numbers(1, kept, START + count, WIDTH) + 1
    expected = sdpa_attention_forward(
        module(kept), query, key, value, whole[None, None], scaling=0.3
    )[0]
    found = attend(
        module(kept), query, key, value, None, scaling=0.3, branches=branches(tree, size)
    )[0]
    torch.testing.assert_close(found, expected)


def test_a_tree_of_one_token() -> None:
    tree = plant([[1, 2]], 1)
    query, key, value = (numbers(1, HEADS, count, WIDTH) for count in (1, 2, 2))
    expected = sdpa_attention_forward(module(HEADS), query, key, value, None, scaling=0.3)[0]
    found = attend(module(HEADS), query, key, value, None, scaling=0.3, branches=branches(tree, 9))[
        0
    ]
    torch.testing.assert_close(found, expected)


def test_layers_that_hold_images_are_left_alone() -> None:
    tree, other = a_tree(), module(HEADS, layer=LAYER + 1)
    query, key = numbers(1, HEADS, len(tree.ids), WIDTH), numbers(1, HEADS, 5, WIDTH)
    mask = torch.ones(1, 1, len(tree.ids), 5, dtype=torch.bool)
    expected = attend(other, query, key, key, mask, scaling=0.3)[0]
    found = attend(other, query, key, key, mask, scaling=0.3, branches=branches(tree, 9))[0]
    assert found.equal(expected)
