"""The same forward passes without everything around them: a floor for an engine's seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from jobs.benchmarks.search_breakdown import HeadPass, ImagePass, LanguagePass, Pass


@torch.inference_mode()
def alone(passes: Sequence[Pass]) -> float:
    """Seconds of passes of these shapes on the bare models, one after another.

    What goes in is made before each pass and not counted, keys and values included: no masks from
    texts, no rows that join or leave, no cache that is written, gathered or padded.
    """
    seconds = 0.0
    for each in passes:
        run = _ready(each)
        began = time.perf_counter()
        run()
        seconds += time.perf_counter() - began
    return seconds


def _ready(each: Pass) -> Callable[[], Any]:
    if isinstance(each, ImagePass):
        return _image(each)
    if isinstance(each, HeadPass):
        model = each.model
        hidden = torch.ones((each.tokens, model.lm_head.in_features), **_like(model))
        return lambda: model.lm_head(hidden)
    return _language(each)


def _image(given: ImagePass) -> Callable[[], Any]:
    model = given.model
    ones = torch.ones(given.shape[:3], dtype=torch.int64, device=model.device)
    pixels = torch.ones(given.shape, **_like(model))

    def run() -> Any:
        encoded = model.model.vision_model(
            pixel_values=pixels, aspect_ratio_ids=ones[..., 0], aspect_ratio_mask=ones
        )
        return model.model.multi_modal_projector(encoded.last_hidden_state)

    return run


def _language(given: LanguagePass) -> Callable[[], Any]:
    model, columns = given.model, given.columns
    device = model.device
    rows, tokens = given.rows, given.tokens  # of what goes in; [R, T] of the mask, [G, T] of looks
    queries, groups, sights = tokens, rows, tokens
    if given.beside is not None:
        rows, queries, sights = 1, given.beside.queries.shape[1], 1
        groups = 1 if given.shared is None else len(given.shared.queries)
    first = columns - min(tokens, columns)
    inputs: dict[str, Any] = {
        "input_ids": torch.zeros((rows, tokens), dtype=torch.int64, device=device),
        "attention_mask": torch.ones(
            (given.rows, 1, queries, columns), dtype=torch.bool, device=device
        ),
        "position_ids": torch.arange(first, first + tokens, device=device).expand(rows, -1),
        "past_key_values": _cache(given, groups),
        "use_cache": True,
        "beside": given.beside,
        "shared": given.shared,
    }
    if given.seen:
        looks = torch.ones((groups, 1, sights, given.seen), dtype=torch.bool, device=device)
        touched = torch.ones((rows, 1, tokens, 1), **_like(model))
        inputs |= {"cross_attention_mask": looks, "full_text_row_masked_out_mask": touched}
    return lambda: model.model.language_model(**inputs)


class _There(DynamicLayer):
    """Keys and values that are there already, those of the new tokens included."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._there = keys, values
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._there


def _cache(given: LanguagePass, groups: int) -> Cache:
    """Of the rows, and of the `groups` of images that they look at."""
    text = given.model.config.text_config
    heads, width = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
    layers: list[Any] = []
    for layer in range(text.num_hidden_layers):
        crossing = layer in text.cross_attention_layers
        rows = groups if crossing else given.rows
        columns = given.seen if crossing else given.columns
        keys = torch.ones((rows, heads, columns, width), **_like(given.model))
        layers.append(_There(keys, keys.clone()))
        layers[-1].is_initialized = columns > 0
    return Cache(layers=layers)


def _like(model: Any) -> dict[str, Any]:
    return {"dtype": model.dtype, "device": model.device}
