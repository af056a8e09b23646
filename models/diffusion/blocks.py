"""Building blocks of the ADM UNet (Dhariwal & Nichol 2021): residual blocks, attention, resampling.

Attribute names are those of the official checkpoints, so that a ``state_dict`` loads strictly. Normalisation always
runs in float32. The last layer of each residual branch is initialised to zero, as in the paper's training.
"""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32

LayerT = TypeVar("LayerT", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation with 32 groups, computed in float32 and returned in the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, ...); same shape and dtype."""
        wide = x.float()
        return super().forward(_near_zero(wide) if _channels_innermost_on_cpu(wide) else wide).to(x.dtype)

    def activated(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, H, W), then scale and shift it if there is a modulation (B, 2C), and apply SiLU.

        ``modulation`` has scale - 1 of each channel and then its shift, float32. It is rounded to the dtype of x.
        """
        h = self(x)
        if modulation is not None:
            scale, shift = modulation.to(h.dtype)[:, :, None, None].chunk(2, dim=1)
            if torch.is_grad_enabled():
                h = h * (1 + scale) + shift
            else:
                h.mul_(1 + scale).add_(shift)  # the same values, without two more maps in memory
        return F.silu(h)


def _channels_innermost_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.ndim == 4 and not x.is_contiguous()


def _near_zero(x: Tensor) -> Tensor:
    """Subtract its mean from each group of x (B, C, H, W), which does not change the normalised values.

    PyTorch's kernel for channels-last maps computes a variance as the mean square minus the square of the mean. In an
    almost constant group this cancels: an error of 2e-5 in one layer, of 5e-4 in eps of a smooth image.
    """
    means = x.mean(dim=(2, 3)).reshape(len(x), GROUPS, -1)
    shift = means.mean(dim=2, keepdim=True).expand_as(means)
    return x - shift.reshape(len(x), -1, 1, 1)


class EmbeddedSequential(nn.Sequential):
    """A sequence whose residual blocks also receive the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """Run x (B, C, H, W) through the layers; emb is (B, E) float32."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Double height and width (nearest neighbour), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        return cast(Tensor, self.conv(upsampled(x)))


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        return cast(Tensor, self.op(x))


class ResBlock(nn.Module):
    """Two convolutions with the time embedding between them, and a skip connection.

    Parameters
    ----------
    channels, out_channels, emb_channels
        Channels of the input, the output and the time embedding.
    dropout
        Probability of dropout before the second convolution.
    scale_shift
        Let the embedding scale and shift the second normalisation instead of adding it before.
    resample
        ``"up"``, ``"down"`` or ``"none"``; both branches are resampled before the first convolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        dropout: float,
        scale_shift: bool,
        resample: str = "none",
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if scale_shift else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Transform x (B, C, H, W) under emb (B, E) float32."""
        norm, _, conv = cast(tuple[GroupNorm32, nn.SiLU, nn.Conv2d], self.in_layers)
        h = conv(resampled(norm.activated(x), self.resample))
        modulation = self.emb_layers(emb)
        norm, _, dropout, conv = cast(tuple[GroupNorm32, nn.SiLU, nn.Dropout, nn.Conv2d], self.out_layers)
        added = None if self.scale_shift else modulation.to(h.dtype)[:, :, None, None]
        h = norm.activated(h, modulation) if added is None else norm.activated(h + added)
        h = conv(dropout(h))
        return cast(Tensor, self.skip_connection(resampled(x, self.resample)) + h)


class AttentionBlock(nn.Module):
    """Self-attention over positions, with a skip connection.

    ``qkv`` makes 3C channels. In the legacy order they are (head, q/k/v, channel), in the new one (q/k/v, head,
    channel). Both convolutions have one tap, so they are computed as matrix products on channels-last tokens. A
    channels-last map is then never copied, and queries, keys and values are contiguous along channels, as the fused
    kernels require.
    """

    def __init__(self, channels: int, heads: int, *, new_order: bool) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each image of x (B, C, H, W)."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = pointwise(self.qkv, tokens)
        if self.new_order:
            q, k, v = qkv.reshape(batch, height * width, 3, self.heads, -1).transpose(1, 3).unbind(2)
        else:
            q, k, v = qkv.reshape(batch, height * width, self.heads, 3, -1).transpose(1, 2).unbind(3)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, positions, channels of a head)
        h = pointwise(self.proj_out, attended.transpose(1, 2).reshape(batch, height * width, channels))
        return x + h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def pointwise(conv: nn.Conv1d, tokens: Tensor) -> Tensor:
    """Apply a convolution of one tap to tokens (B, positions, channels in): (B, positions, channels out)."""
    return F.linear(tokens, conv.weight[:, :, 0], conv.bias)


def zero_init(module: LayerT) -> LayerT:
    """Set every parameter of a layer to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def upsampled(x: Tensor) -> Tensor:
    """Repeat every pixel twice in both directions."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def resampled(x: Tensor, how: str) -> Tensor:
    """Return x doubled (``"up"``), averaged over 2x2 pixels (``"down"``) or unchanged (``"none"``)."""
    if how == "up":
        return upsampled(x)
    return F.avg_pool2d(x, 2) if how == "down" else x


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Return sinusoids of timesteps t (B,) as (B, width) float32, cosines first; periods from 2 pi to 20000 pi."""
    half = width // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)
