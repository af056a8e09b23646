"""The attention block as it is computed against the same block spelled out."""

from __future__ import annotations

import pytest
import torch
from distil_cache.pipeline.adm_blocks import AttentionBlock
from golden_arithmetic import spelled_out_attention


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_the_reference_attention_up_to_the_order_of_sums(
    new_order: bool, order: torch.memory_format
) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(64, 4, new_order=new_order)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 64, 6, 4)
    with torch.inference_mode():
        ours, reference = block(x.contiguous(memory_format=order)), spelled_out_attention(block, x)
    assert float((ours - reference).norm() / reference.norm()) < 1e-6
    assert float((ours - x).norm() / x.norm()) > 0.1
    assert ours.is_contiguous(memory_format=order)
