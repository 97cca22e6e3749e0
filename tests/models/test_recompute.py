"""Recomputing activations reaches every layer and changes no number."""

from __future__ import annotations

import copy
from typing import Any

import torch

from stagebeam.models.load import Loaded
from stagebeam.models.recompute import recompute
from stagebeam.records import Example


def run(model: Any, loaded: Loaded, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of every weight."""
    logits = loaded.family.forward(model, batch, loaded.encoder.normalisation)
    logits.logsumexp(-1).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_layer_of_tower_and_decoder_runs_twice_for_the_same_gradients(
    loaded: Loaded, scenes: list[Example]
) -> None:
    batch = {k: torch.from_numpy(v) for k, v in loaded.encoder(scenes[:2])[0].items()}
    kept = copy.deepcopy(loaded.model).train()
    again = copy.deepcopy(loaded.model).train()
    recompute(again)
    layers = [
        *again.model.vision_model.transformer.layers,
        *again.model.vision_model.global_transformer.layers,
        *again.model.language_model.layers,
    ]
    calls = [0] * len(layers)

    def count(number: int) -> Any:
        def hook(*_: Any) -> None:
            calls[number] += 1

        return hook

    for number, layer in enumerate(layers):
        # Before: a layer that is run again stops as soon as it has what is asked for.
        layer.mlp.register_forward_pre_hook(count(number))
    expected, found = run(kept, loaded, batch), run(again, loaded, batch)
    assert calls == [2] * len(layers)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0, msg=name)
