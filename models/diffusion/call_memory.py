"""What one call of the ADM takes in memory on a CPU: the bytes of its weights, and of its feature maps an image.

The maps of an image are counted by walking through the network as :class:`.unet.Adm` does, in evaluation mode without
gradients: at each operation, the maps that are still referenced. The skip connections of the finest level and the map
joined with them decide, so that the sum is proportional to the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...choices import Precision
from ..device import HALF_TYPES
from .ddpm import DdpmConfig, measured, parameter_bytes
from .kinds import DiffusionConfig
from .unet import Adm, AdmConfig
from .winograd import BLOCK_BYTES, WinogradConv2d, has_worthwhile_size, use_winograd

_BYTES = 4
"""Bytes of a value in float32."""
_HALF = 7 / 6
"""Bytes of the maps at a normalisation in half precision over those in float32: one of 2 and three of 4 to three of 4."""
_SCRATCH = 3 * BLOCK_BYTES
"""Sums and products of two blocks of Winograd's algorithm, of which the first is freed late, and what combines them."""


@dataclass(frozen=True)
class CallMemory:
    """Memory of one call on a CPU in bytes.

    Attributes
    ----------
    weights
        The parameters in the precision of the call.
    sums
        What Winograd's algorithm keeps beside them from the first call on, and its scratch memory.
    image
        Feature maps of one image that are in memory at the same time, at most.
    """

    weights: int
    sums: int
    image: int

    def of_batch(self, images: int) -> int:
        """Return the bytes of a call on this many images."""
        return self.weights + self.sums + images * self.image


def call_memory(config: DiffusionConfig, side: int, precision: Precision) -> CallMemory:
    """Return the memory of a call on images of ``side`` pixels, on a CPU."""
    if isinstance(config, DdpmConfig):
        return CallMemory(parameter_bytes(config), 0, measured(config, side).alive)
    with torch.device("meta"):
        model = Adm(config).eval().requires_grad_(False)
    image = _BYTES * max(_live_values(config, side))
    if precision in HALF_TYPES:
        model.to_half(HALF_TYPES[precision])
        return CallMemory(_parameters(model), 0, int(image * _HALF))
    return CallMemory(_parameters(model), _winograd_bytes(model, side), image)


def _parameters(model: Adm) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _winograd_bytes(model: Adm, side: int) -> int:
    """Return what Winograd's algorithm takes on images of ``side`` pixels: twice the weights of its layers, and scratch."""
    sums = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal sums
        assert isinstance(layer, WinogradConv2d)
        sums += 2 * layer.weight.nbytes if has_worthwhile_size(inputs[0], layer.out_channels) else 0

    use_winograd(model)
    for layer in model.modules():
        if isinstance(layer, WinogradConv2d):
            layer.register_forward_pre_hook(add)
    classes = (torch.zeros(1, dtype=torch.int64, device="meta"),) if model.config.class_cond else ()
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side, device="meta"), torch.zeros(1, device="meta"), *classes)
    return sums + _SCRATCH if sums else 0


def _live_values(config: AdmConfig, side: int) -> Iterator[int]:
    """Yield the values an image of all maps that are alive, at each layer of the network."""
    levels, attend = config.level_channels(), config.attention_factors()
    last = len(levels) - 1
    skips = [levels[0] * side**2]
    channels = levels[0]
    yield 3 * side**2 + skips[0]
    for level, out in enumerate(levels):
        pixels = (side >> level) ** 2
        for _ in range(config.num_res_blocks):
            yield sum(skips) + _res_block(channels, out, pixels)
            channels = out
            if 2**level in attend:
                yield sum(skips) + channels * pixels + _attention(channels, pixels)
            skips.append(channels * pixels)
        if level < last:
            yield sum(skips) + (_down_block(channels, pixels) if config.resblock_updown else channels * pixels // 4)
            skips.append(channels * pixels // 4)
    pixels = (side >> last) ** 2
    yield sum(skips) + max(_res_block(channels, channels, pixels), channels * pixels + _attention(channels, pixels))
    yield sum(skips) + 2 * channels * pixels + _res_block(channels, channels, pixels)
    for level, out in reversed(list(enumerate(levels))):
        pixels = (side >> level) ** 2
        for index in range(config.num_res_blocks + 1):
            joined = channels + skips.pop() // pixels
            held = sum(skips) + (channels + joined) * pixels  # the skips left, the map before, and both joined
            yield held + _res_block(joined, out, pixels)
            channels = out
            if 2**level in attend:
                yield held + channels * pixels + _attention(channels, pixels)
            if level and index == config.num_res_blocks:
                up = _up_block(channels, pixels) if config.resblock_updown else 8 * channels * pixels
                yield held + channels * pixels + up


def _res_block(channels: int, out: int, pixels: int) -> int:
    """Return the values that a residual block adds to its input, at most."""
    normalised = 2 * channels * pixels  # the map near zero, then normalised; or normalised, then activated
    first = (channels + out) * pixels
    second = 3 * out * pixels  # the map, and as above; or the skip connection, the branch and their sum
    return max(normalised, first, second)


def _down_block(channels: int, pixels: int) -> int:
    """Return the same for a residual block that halves height and width."""
    return max(2 * channels * pixels, 5 * channels * pixels // 4)


def _up_block(channels: int, pixels: int) -> int:
    """Return the same for a residual block that doubles height and width."""
    return 12 * channels * pixels


def _attention(channels: int, pixels: int) -> int:
    """Return the values that attention adds to its input: tokens, queries, keys and values, result, projection, sum."""
    return 7 * channels * pixels
