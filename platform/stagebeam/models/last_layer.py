"""The last layer for the tokens that are asked about alone: of the others a pass wants keys and
values, and neither queries nor an MLP. In a judge's round a dozen tokens of hundreds are left.

Shapes: R rows, T tokens, D width of what goes in, E of what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch

_WANTED: ContextVar[torch.Tensor | slice | None] = ContextVar("wanted", default=None)


def spare_last_layer(decoder: Any) -> None:
    """Of a decoder of transformers; without `wanting` it does what it did."""
    layer = decoder.layers[-1]
    attention = layer.cross_attn if hasattr(layer, "cross_attn") else layer.self_attn
    for module in (attention.q_proj, attention.o_proj, layer.mlp):
        module.forward = partial(_forward, module)


@contextmanager
def wanting(tokens: torch.Tensor | slice) -> Iterator[None]:
    """Passes of this thread give only these of their T tokens; what they give of others is void."""
    before = _WANTED.set(tokens)
    try:
        yield
    finally:
        _WANTED.reset(before)


def _forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """[R, T, D] to [R, T, E], of tokens that are not wanted zeros."""
    wanted, forward = _WANTED.get(), type(module).forward
    if wanted is None or hidden.shape[1] == 1:
        whole: torch.Tensor = forward(module, hidden)
        return whole
    some = forward(module, hidden[:, wanted])
    out: torch.Tensor = some.new_zeros(*hidden.shape[:2], some.shape[-1])
    out[:, wanted] = some
    return out
