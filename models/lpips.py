"""LPIPS (Zhang et al. 2018), version 0.1 on VGG-16: the perceptual distance of two images, by layer.

The modules have the names of the package ``lpips``, so that the state dict of its ``LPIPS(net="vgg")`` loads as it is. The
distance of a layer is the mean over positions of the weighted squared difference of the normalised features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..progress import Progress
from .backbones import per_channel
from .remote_weights import weights_path
from .weights import file_weights_digest, load_frozen, read_state_dict

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG-16's convolutions, by slice; each but the first begins with a pooling."""
LAYERS = len(_SLICES)
_LEAST = 1e-10
_UNUSED = ("scaling_layer.", "lin0.", "lin1.", "lin2.", "lin3.", "lin4.")
"""Keys of the package that are constants, or further names of the same weights."""


class Lpips(nn.Module):
    """The distance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        channels, number = 3, 0
        for index, outs in enumerate(_SLICES):
            layers = nn.Sequential()
            if index:
                layers.add_module(str(number), nn.MaxPool2d(2, 2))
                number += 1
            for out in outs:
                layers.add_module(str(number), nn.Conv2d(channels, out, 3, padding=1))
                layers.add_module(str(number + 1), nn.ReLU())
                channels, number = out, number + 2
            self.net.add_module(f"slice{index + 1}", layers)
        self.lins = nn.ModuleList()
        for outs in _SLICES:
            lin = nn.Module()
            lin.model = nn.Sequential(nn.Dropout(), nn.Conv2d(outs[-1], 1, 1, bias=False))
            self.lins.append(lin)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances of images (B, 3, H, W) in [-1, 1]: the sum over layers, then each layer; (B, 6)."""
        distances = []
        shift, scale = per_channel(SHIFT, a), per_channel(SCALE, a)
        a, b = (a - shift) / scale, (b - shift) / scale
        for layer, lin in zip(self.net.children(), self.lins, strict=True):
            a, b = layer(a), layer(b)
            weighted = lin.model((_unit(a) - _unit(b)).square())  # type: ignore[operator]
            distances.append(weighted.mean(dim=(1, 2, 3)))
        layers = torch.stack(distances, dim=1)
        return torch.cat([layers.sum(dim=1, keepdim=True), layers], dim=1)


@dataclass(frozen=True)
class LpipsSource:
    """LPIPS as options name it: a file with the state dict of ``lpips.LPIPS(net="vgg")``, or its address."""

    name: str
    sha256: tuple[str, ...] = ()

    def digest(self, progress: Progress | None = None) -> str:
        """Return the digest of its weights. Raises UserError if they cannot be obtained."""
        return file_weights_digest(weights_path(self.name, self.sha256, progress))

    def fields(self, digest: str) -> dict[str, object]:
        """Return what a spec says of it."""
        return {"lpips": digest}

    def load(self) -> nn.Module:
        """Load it. Raises UserError if the file holds something else."""
        path: Path = weights_path(self.name, self.sha256)
        state = {name: value for name, value in read_state_dict(path).items() if not name.startswith(_UNUSED)}
        return load_frozen(Lpips, state, f"{path} for LPIPS")

    def build(self) -> nn.Module:
        """Build it with random weights, in evaluation mode."""
        return Lpips().eval()


def _unit(features: Tensor) -> Tensor:
    """Return features with a norm of 1 over channels at each position."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + _LEAST)
