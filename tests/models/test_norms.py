"""Fused norms give what transformers' norms give, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mllama.modeling_mllama import MllamaTextRMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from stagebeam.models.norms import fuse_norms


@pytest.mark.parametrize("norm", [LlamaRMSNorm, MllamaTextRMSNorm, Qwen2_5_VLRMSNorm])
@pytest.mark.parametrize("shape", [(4, 1, 64), (1, 100, 64), (2, 4, 7, 64)])
def test_a_fused_norm_is_the_same_norm(norm: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = norm(64, eps=1e-5)
    layer.weight.data = torch.randn(64)
    hidden = torch.randn(shape)
    expected = layer(hidden)
    fuse_norms(nn.Sequential(layer))
    assert "forward" in vars(layer)
    assert torch.equal(layer(hidden), expected)
