"""What teacher and student do alike to their input: cached and online features agree only if these are one function."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) floats to size x size, bilinear and antialiased; images of that size stay as they are."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
