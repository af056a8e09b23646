"""Program: run the fused normalisation in Triton's interpreter on the CPU, and print its errors against float64 as JSON.

A program of its own, since Triton must be told to interpret before it is first imported.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from distil_cache.models.diffusion import fused_norm, norm_kernels
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected(x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, *, activated: bool) -> Tensor:
    """The same in float64, by PyTorch's operations."""
    made = F.group_norm(x.double(), fused_norm.GROUPS, weight.double(), bias.double(), EPS)
    if modulation is not None:
        scale, shift = modulation.double()[:, :, None, None].chunk(2, dim=1)
        made = made * (1 + scale) + shift
    return F.silu(made) if activated else made


def fused(x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, *, activated: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.full_like(x, float("nan"))
    fused_norm.launch(norm_kernels, x, y, weight, bias, modulation, EPS, activated)
    assert y.is_contiguous(memory_format=torch.channels_last)
    return y


def error(x: Tensor, *, modulated: bool, activated: bool) -> float:
    """The largest difference, over the largest expected value or 1."""
    batch, channels = x.shape[:2]
    weight, bias = 1 + 0.3 * drawn(channels, seed=1), drawn(channels, seed=2)
    modulation = 0.5 * drawn(batch, 2 * channels, seed=3) if modulated else None
    made = fused(x, weight, bias, modulation, activated=activated)
    right = expected(x, weight, bias, modulation, activated=activated)
    assert made.dtype == x.dtype
    return float((made.double() - right).abs().max() / right.abs().max().clamp(min=1))


def nearly_constant() -> Tensor:
    """Groups of one value each, up to 1e-3, but for a border that is far away."""
    x = 100 + 1e-3 * drawn(1, 64, 40, 16)
    x[:, :, 0] -= 30
    return x


def main() -> None:
    small, odd = drawn(2, 64, 6, 5) * 3 + 2, drawn(1, 96, 3, 3)
    wide, large = drawn(1, 192, 9, 8), drawn(1, 32, 100, 90)
    smooth = 1 + 1e-4 * drawn(1, 64, 12, 11)
    errors = {
        "plain": error(small, modulated=False, activated=False),
        "activated": error(small, modulated=False, activated=True),
        "modulated": error(small, modulated=True, activated=True),
        "three channels a group": error(odd, modulated=True, activated=True),
        "six channels a group": error(wide, modulated=False, activated=True),
        "one position": error(drawn(3, 64, 1, 1), modulated=True, activated=True),
        "several tiles a chunk": error(large, modulated=True, activated=True),
        "almost constant": error(smooth, modulated=False, activated=False),
        "constant but for a border": error(nearly_constant(), modulated=False, activated=False),
        "bfloat16": error(small.bfloat16(), modulated=True, activated=True),
        "float16": error(small.half(), modulated=True, activated=True),
    }
    weight, bias = torch.ones(64), torch.zeros(64)
    together = fused(small, weight, bias, None, activated=True)
    alone = [fused(small[row : row + 1], weight, bias, None, activated=True) for row in range(len(small))]
    print(json.dumps({"errors": errors, "rows_equal": torch.equal(together, torch.cat(alone))}))


if __name__ == "__main__":
    main()
