"""Holding a batch's logits against those of each row alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stagebeam.records import Example

# Padding changes the order of float32 sums, by far less than this.
CLOSE = 1e-4


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def expect_each(
    together: Sequence[torch.Tensor],
    rows: Sequence[Example],
    alone: Callable[[Example], torch.Tensor],
) -> None:
    """Each row of a batch has the logits [T, V] that `alone` gives for it."""
    for logits, row in zip(together, rows, strict=True):
        assert distance(logits, alone(row)) < CLOSE
