"""The same forward passes without everything around them: a floor for an engine's seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from jobs.benchmarks.search_breakdown import ImagePass, LanguagePass, Pass


@torch.inference_mode()
def alone(passes: Sequence[Pass]) -> float:
    """Seconds of passes of these shapes on the bare models, one after another.

    What goes in is made before each pass and not counted: no masks from texts, no rows that join
    or leave, no cache that is gathered or padded.
    """
    seconds = 0.0
    for each in passes:
        run = _image(each) if isinstance(each, ImagePass) else _language(each)
        began = time.perf_counter()
        run()
        seconds += time.perf_counter() - began
    return seconds


def _image(given: ImagePass) -> Callable[[], Any]:
    model = given.model
    ones = torch.ones(given.shape[:3], dtype=torch.int64, device=model.device)
    pixels = torch.ones(given.shape, dtype=model.dtype, device=model.device)

    def run() -> Any:
        encoded = model.model.vision_model(
            pixel_values=pixels, aspect_ratio_ids=ones[..., 0], aspect_ratio_mask=ones
        )
        return model.model.multi_modal_projector(encoded.last_hidden_state)

    return run


def _language(given: LanguagePass) -> Callable[[], Any]:
    model, text = given.model, given.model.config.text_config
    rows, tokens, total = given.rows, given.tokens, given.width + given.tokens
    vision = model.config.vision_config
    seen = vision.max_num_tiles * model.model.vision_model.num_patches  # of one image
    made: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    inputs = {
        "input_ids": torch.zeros((rows, tokens), dtype=torch.int64, device=model.device),
        "attention_mask": torch.ones((rows, total), dtype=torch.int64, device=model.device),
        "position_ids": torch.arange(given.width, total, device=model.device).expand(rows, -1),
        "cross_attention_mask": torch.zeros((rows, 1, tokens, seen), **made),
        "full_text_row_masked_out_mask": torch.ones((rows, 1, tokens, 1), **made),
        "past_key_values": _cache(given, seen, made) if given.cached else None,
        "use_cache": given.cached,
    }
    if given.states:
        inputs["cross_attention_states"] = torch.ones((rows, seen, text.hidden_size), **made)

    def run() -> Any:
        hidden = model.model.language_model(**inputs).last_hidden_state
        return model.lm_head(hidden[:, tokens - given.logits :])

    return run


def _cache(given: LanguagePass, seen: int, made: dict[str, Any]) -> DynamicCache:
    text = given.model.config.text_config
    size = text.hidden_size // text.num_attention_heads
    cache = DynamicCache()
    for layer in range(text.num_hidden_layers):
        crossing = layer in text.cross_attention_layers
        if not given.width or (crossing and given.states):
            continue
        columns = seen if crossing else given.width
        keys = torch.ones((given.rows, text.num_key_value_heads, columns, size), **made)
        cache.update(keys, keys.clone(), layer)
    return cache
