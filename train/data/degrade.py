"""Blur and JPEG of stored pictures in training (CNNDet, arXiv 1912.11035, section 3.2; DistilDIRE's published code).

They change the image alone. Its cached eps, noise and DIRE stay those of the clean image, so only a method that reads
no other feature may use them, or one whose published code does the same (``official-code``, which says so). JPEG is a
matter of the CPU, and the blur comes before it: both happen where the rows are read.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..methods import Degradation
from .randomness import sample_draws

TRUNCATE = 4.0
"""The Gaussian is cut at this many standard deviations, as scipy cuts it."""


@dataclass(frozen=True)
class Degrader:
    """The degradation of one training: call it with the images of some rows in one epoch."""

    settings: Degradation
    seed: int

    def __call__(self, images: Tensor, rows: npt.NDArray[Any], epoch: int) -> Tensor:
        """Return the images, (B, 3, H, W) uint8 on the CPU, blurred and compressed as their rows have drawn."""
        probability, drawn = self.settings.probability, sample_draws(self.seed, epoch, rows)
        (least, most), (worst, best) = self.settings.blur, self.settings.jpeg
        out = images.clone()
        for place in range(len(images)):
            if most > 0 and drawn.blur[place] < probability:
                out[place] = gaussian_blur(out[place], least + float(drawn.sigma[place]) * (most - least))
            if drawn.jpeg[place] < probability:
                out[place] = jpeg_compress(out[place], worst + int(drawn.quality[place] * (best - worst + 1)))
        return out


def jpeg_compress(image: Tensor, quality: int) -> Tensor:
    """(3, H, W) uint8 after JPEG of this quality, with chroma at half the resolution as is libjpeg's default."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (3, H, W) uint8 by a Gaussian, sigma in pixels; beyond the edges the image goes on mirrored."""
    radius = int(TRUNCATE * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offset / max(sigma, 1e-3)) ** 2)
    kernel = kernel / kernel.sum()
    x = image.float()[:, None][:, :, _mirror(image.shape[-2], radius)][..., _mirror(image.shape[-1], radius)]
    x = F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None, :])
    return x[:, 0].round().clamp(0, 255).to(torch.uint8)


def _mirror(length: int, radius: int) -> Tensor:
    """Indices that continue a line of pixels beyond both ends, the last pixel repeated: c b a | a b c | c b a."""
    place = torch.arange(-radius, length + radius) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)
