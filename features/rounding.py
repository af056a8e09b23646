"""Floats as a cache gives them back, computed on the device of a pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..cache.records.about import Layout
from ..cache.shards.packed import BITS, BLOCK, LEAST_EXPONENT, most_exponent, packing_of
from ..choices import FloatStorage


def stored_floats(x: Tensor, storage: FloatStorage) -> Tensor:
    """Return float32 values (N, ...) as a cache that stores them so gives them back, on their device.

    For integers this is the rounding of :func:`..cache.shards.packed.pack`, to the bit: what a student is trained on
    and what ``predict`` computes are the same.
    """
    packed = packing_of(storage)
    if packed is None:
        return x.to(getattr(torch, storage))
    bits, values = BITS[packed], x[0].numel()
    block = functional.pad(x.half().float().flatten(1), (0, -values % BLOCK)).reshape(len(x), -1, BLOCK)
    exponent = torch.frexp(block.abs().amax(-1, keepdim=True)).exponent - (bits - 1)
    exponent = exponent.clamp(LEAST_EXPONENT, most_exponent(packed))
    most = 2 ** (bits - 1) - 1
    codes = torch.ldexp(block, -exponent).round().clamp(-most, most)
    return torch.ldexp(codes, exponent).half().flatten(1)[:, :values].reshape(x.shape)


def float_pixels(size: int, storage: FloatStorage) -> Layout:
    """Return the layout of floats over the pixels of an image with this side."""
    return Layout((3, size, size), "float32" if storage == "float32" else "float16", "pixels", storage)
