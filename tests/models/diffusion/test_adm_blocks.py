"""The attention block against the same block written out."""

from __future__ import annotations

import pytest
import torch
from distil_cache.models.diffusion.blocks import AttentionBlock, GroupNorm32, ResBlock
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


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_group_that_is_almost_constant_is_normalised_as_well_as_any(order: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = GroupNorm32(64)
    x = 3 + 0.01 * torch.randn(2, 64, 16, 16)
    exact = torch.nn.functional.group_norm(x.double(), 32, eps=norm.eps)
    with torch.inference_mode():
        found = norm(x.contiguous(memory_format=order))
    assert float((found - exact).norm() / exact.norm()) < 2e-5  # what rounding the mean of 3 to float32 leaves of 0.01
    assert found.is_contiguous(memory_format=order)


def test_scale_and_shift_give_the_same_values_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    block = ResBlock(32, 32, 16, dropout=0.0, scale_shift=True)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    with torch.inference_mode():
        without = block(x, emb)
    assert torch.equal(block(x, emb), without)
