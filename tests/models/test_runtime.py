"""What engines ask of any model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from stagebeam.models.runtime import Runtime


@pytest.mark.parametrize("bias", [False, True])
def test_the_logits_of_options_are_those_of_the_whole_vocabulary(bias: bool) -> None:
    head = nn.Linear(8, 50, bias=bias)
    runtime: Any = SimpleNamespace(model=SimpleNamespace(lm_head=head))
    hidden = torch.randn(5, 8)
    found = Runtime.options(runtime, hidden, (7, 3))
    torch.testing.assert_close(found, head(hidden)[:, [7, 3]])
    assert Runtime.options(runtime, hidden, ()).shape == (5, 0)
