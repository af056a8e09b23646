"""3x3 convolutions with half the multiplications: Winograd's minimal filtering F(4, 3) along the columns of a map.

Four neighbouring outputs of a 3-tap filter need 12 products, or only 6: products of six sums of the inputs with six
sums of the taps (Winograd, Arithmetic Complexity of Computations, 1980; matrices from Lavin and Gray, arXiv 1509.09308,
section 4.3). It is applied in one direction here: six convolutions with 1x3 taps on a quarter of the rows replace one
with 3x3 taps on all rows. Both directions would need still fewer products, but on a CPU the sums then cost more than
that saves, and rounding is worse.

The sums are computed on channels-last float32 maps, in blocks that fit the processor's cache. The result differs from
an exact convolution by rounding, about twice as much as a direct convolution does. For inference on a CPU only: no
gradients, and weights that do not change.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 4
"""Output rows computed together."""
SUMS = 6
"""Sums of input rows from which they are computed."""
BLOCK_BYTES = 16 * 2**20
"""Limit for the sums and products held at once, unless one row of tiles of one image takes more."""

MIN_CHANNELS = 64
"""With fewer input or output channels, each sum serves too few products."""
MIN_PRODUCTS = 4 * 2**20
"""With fewer products (positions x channels in x channels out), the sums cost more than they save."""

# Sums of the taps. The last row has the opposite sign of Lavin and Gray's, as does the last sum of `_input_sums`.
_TAPS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, -1),
)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution with stride 1 and padding 1 that uses Winograd's algorithm where it is faster.

    It shares the parameters of the layer it is made from, under the same names. The sums of the taps are computed on
    first use and kept: twice the bytes of the weights.

    Parameters
    ----------
    conv
        The layer to replace.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self._kernels: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H, W) to (B, K, H, W)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_worthwhile(x, self.out_channels):
            return super().forward(x)
        if self._kernels is None:
            self._kernels = column_sums(self.weight)
        return convolved(x, self._kernels, self.bias)


def use_winograd(model: nn.Module) -> None:
    """Replace a model's suitable frozen convolutions, in place, by ones that use Winograd's algorithm."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _suits(layer):
                setattr(parent, name, WinogradConv2d(layer))


def _suits(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    enough_channels = min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    return enough_channels and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and not conv.weight.requires_grad


def is_worthwhile(x: Tensor, out_channels: int) -> bool:
    """Return whether Winograd's algorithm is faster for x (B, C, H, W), by fixed limits from measurements."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and has_worthwhile_size(x, out_channels)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def has_worthwhile_size(x: Tensor, out_channels: int) -> bool:
    """Return whether x (B, C, H, W) is large enough for Winograd's algorithm.

    An image needs at least as many positions as there are output channels: on smaller maps, reading weights of twice
    the size costs what the products save. The batch size has no influence, so it does not change the arithmetic.
    """
    positions, channels = x.shape[2] * x.shape[3], x.shape[1]
    return (
        x.shape[2] % ROWS == 0
        and min(channels, out_channels) >= MIN_CHANNELS
        and positions >= out_channels
        and positions * channels * out_channels >= MIN_PRODUCTS
    )


def column_sums(weight: Tensor) -> Tensor:
    """Return the sums of the columns of taps (K, C, 3, 3): six kernels (6, K, C, 1, 3), channels innermost."""
    sums = torch.einsum("ia,kcab->ikbc", weight.new_tensor(_TAPS, dtype=torch.float64), weight.double())
    return sums.to(weight.dtype).contiguous().unsqueeze(2).permute(0, 1, 4, 2, 3)


def convolved(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x with the taps of `column_sums`, padded by 1.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        float32, channels last; H is a multiple of 4.
    kernels : Tensor, shape (6, K, C, 1, 3)
        Result of `column_sums`.
    bias : Tensor, shape (K,)
        Bias, or None.

    Returns
    -------
    Tensor, shape (B, K, H, W)
        The outputs, channels last.
    """
    batch, channels, height, width = x.shape
    out_channels = kernels.shape[1]
    maps, out = x.permute(0, 2, 3, 1), x.new_empty(batch, height, width, out_channels)
    row_bytes = SUMS * width * (channels + out_channels) * x.element_size()
    for images, top, bottom in _blocks(batch, height // ROWS, row_bytes):
        sums = _input_sums(maps[images], top * ROWS, bottom * ROWS)
        products = [
            F.conv2d(rows.permute(0, 3, 1, 2), kernel, bias if i == 1 else None, padding=(0, 1)).permute(0, 2, 3, 1)
            for i, (rows, kernel) in enumerate(zip(sums, kernels, strict=True))
        ]
        _output_rows(products, out[images, top * ROWS : bottom * ROWS])
    return out.permute(0, 3, 1, 2)


def _blocks(images: int, tiles: int, tile_bytes: int) -> Iterator[tuple[slice, int, int]]:
    """Cut a batch into blocks of about equal size: whole images, or the tiles ``top`` to ``bottom`` of one."""
    tiles_at_once = max(1, BLOCK_BYTES // tile_bytes)
    image_step = _even_step(images, max(1, tiles_at_once // tiles))
    tile_step = _even_step(tiles, tiles_at_once)
    for image in range(0, images, image_step):
        for top in range(0, tiles, tile_step):
            yield slice(image, image + image_step), top, min(top + tile_step, tiles)


def _even_step(count: int, largest: int) -> int:
    """Return the smallest step that covers ``count`` in as few steps as ``largest`` does."""
    steps = -(-count // largest)
    return -(-count // steps)


def _input_sums(x: Tensor, top: int, bottom: int) -> Tensor:
    """Return the six sums of input rows for the rows from top to bottom of x (B, H, W, C): (6, B, tiles, W, C).

    For input rows d0 .. d5, of which the first and last are neighbours of the four output rows and zero outside the
    map: 4 d0 - 5 d2 + d4, (d4 - 4 d2) +- (d3 - 4 d1), (d4 - d2) +- 2 (d3 - d1), -(4 d1 - 5 d3 + d5).
    """
    height = x.shape[1]
    d1, d2, d3, d4 = (x[:, top + i : bottom : ROWS] for i in range(ROWS))
    sums = x.new_empty(SUMS, *d1.shape)
    even, plus, minus, plus_2, minus_2, odd = sums
    torch.sub(d4, d2, alpha=4, out=even)
    torch.sub(d3, d1, alpha=4, out=odd)
    torch.add(even, odd, out=plus)
    torch.sub(even, odd, out=minus)
    torch.sub(d4, d2, out=even)
    torch.sub(d3, d1, out=odd)
    torch.add(even, odd, alpha=2, out=plus_2)
    torch.sub(even, odd, alpha=2, out=minus_2)
    above = 1 if top == 0 else 0
    even.sub_(d2, alpha=4)
    even[:, above:].add_(x[:, top - 1 + above * ROWS : bottom - 1 : ROWS], alpha=4)
    below = 1 if bottom == height else 0
    torch.add(d3, odd, alpha=4, out=odd)
    odd[:, : odd.shape[1] - below].sub_(x[:, top + ROWS : bottom + 1 - below : ROWS])
    return sums


def _output_rows(products: list[Tensor], out: Tensor) -> None:
    """Combine the six products (B, tiles, W, K), overwriting them, to rows of out (B, 4 tiles, W, K)."""
    first, plus, minus, plus_2, minus_2, last = products
    both, between = torch.add(plus, minus), plus.sub_(minus)
    both_2, between_2 = torch.add(plus_2, minus_2, out=minus), plus_2.sub_(minus_2)
    torch.add(first.add_(both), both_2, out=out[:, 0::ROWS])
    torch.add(between, between_2, alpha=2, out=out[:, 1::ROWS])
    torch.add(both, both_2, alpha=4, out=out[:, 2::ROWS])
    torch.add(last.add_(between), between_2, alpha=8, out=out[:, 3::ROWS])
