"""The last layer's MLP for the tokens that are asked about alone: of the others the pass wants keys
and values, which are computed before it. In a judge's round a dozen tokens of hundreds are left.

Shapes: R rows, T tokens, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch

_WANTED: ContextVar[torch.Tensor | slice | None] = ContextVar("wanted", default=None)


def spare_last_mlp(decoder: Any) -> None:
    """Of a decoder of transformers; without `wanting` it does what it did."""
    mlp = decoder.layers[-1].mlp
    mlp.forward = partial(_forward, mlp)


@contextmanager
def wanting(tokens: torch.Tensor | slice) -> Iterator[None]:
    """Passes of this thread give only these of their T tokens; what they give of others is void."""
    before = _WANTED.set(tokens)
    try:
        yield
    finally:
        _WANTED.reset(before)


def _forward(mlp: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """[R, T, D] to [R, T, D]"""
    wanted, forward = _WANTED.get(), type(mlp).forward
    if wanted is None or hidden_states.shape[1] == 1:
        whole: torch.Tensor = forward(mlp, hidden_states)
        return whole
    out = torch.zeros_like(hidden_states)
    out[:, wanted] = forward(mlp, hidden_states[:, wanted])
    return out
