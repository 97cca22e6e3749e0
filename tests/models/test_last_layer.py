"""Tokens that nobody asks about go without most of the last layer, and nothing else changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from stagebeam.models.last_layer import spare_last_layer, wanting
from stagebeam.models.load import Loaded

IDS = torch.arange(2, 14)[None]


@pytest.fixture
def decoder(loaded: Loaded) -> Any:
    """In evaluation mode, as an engine has it."""
    return deepcopy(loaded.model.model.language_model)


@torch.inference_mode()
def run(decoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes out [T, D], and the last layer's keys."""
    cache = DynamicCache(config=decoder.config)
    out = decoder(input_ids=IDS, past_key_values=cache, use_cache=True).last_hidden_state
    return out[0], cache.layers[-1].keys


@pytest.mark.parametrize("wanted", [torch.tensor([3, 7]), slice(-1, None)])
def test_what_is_wanted_is_what_it_was(decoder: Any, wanted: torch.Tensor | slice) -> None:
    whole, keys = run(decoder)
    spare_last_layer(decoder)
    spare_last_layer(decoder)  # two engines of one model
    layer = decoder.layers[-1]
    rows: list[int] = []
    hook = layer.mlp.down_proj.register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].shape[1])
    )
    with wanting(wanted):
        some, same_keys = run(decoder)
    torch.testing.assert_close(some[wanted], whole[wanted])
    assert same_keys.equal(keys)
    assert not torch.allclose(some[0], whole[0])
    assert rows == [len(whole[wanted])]
    hook.remove()
    assert run(decoder)[0].equal(whole)


def test_other_threads_get_everything(decoder: Any) -> None:
    spare_last_layer(decoder)
    whole, _ = run(decoder)
    with ThreadPoolExecutor(1) as pool, wanting(slice(-1, None)):
        assert pool.submit(run, decoder).result()[0].equal(whole)
