"""What a linear classifier sees of an image's subject: the pooled features of a frozen network, or a small thumbnail.

An image is reduced to a square of :data:`SIDE` pixels first, so that the traces of compression and resampling, which are
at the finest scale, play little part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError

SIDE = 64
"""Side of the square, in pixels, that stands for an image."""

BACKBONE = "efficientnet_lite0"
"""The frozen network, where its weights are installed."""

_NETWORK_SIDE = 96
_THUMBNAIL_SIDE = 16
_BATCH = 32


class Embedding(NamedTuple):
    """Its name in words, and one row for each image, (N, D) float64."""

    name: str
    rows: NDArray[np.float64]


def square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre square of an image (H, W, 3), reduced or enlarged to (SIDE, SIDE, 3)."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    found = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    how = Image.Resampling.BOX if side >= SIDE else Image.Resampling.BICUBIC
    return np.asarray(found.resize((SIDE, SIDE), how))


def embed(squares: Sequence[NDArray[np.uint8]]) -> Embedding:
    """Embed images as :func:`square` returns them, at least one."""
    return _features(squares) or _thumbnails(squares)


def _features(squares: Sequence[NDArray[np.uint8]]) -> Embedding | None:
    """Return the mean over positions of the network's last feature map; None if torch or the weights are not there."""
    try:
        import torch  # takes seconds, and an audit of headers needs none

        from ...models.backbones import backbone_entry, load_teacher, per_channel, resize
    except ImportError:
        return None
    try:
        network = load_teacher(BACKBONE).model
    except UserError:
        return None
    entry = backbone_entry(BACKBONE)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(squares), _BATCH):
            block = torch.from_numpy(np.stack(squares[start : start + _BATCH])).permute(0, 3, 1, 2).float() / 255
            images = (block - per_channel(entry.mean, block)) / per_channel(entry.std, block)
            rows.append(network(resize(images, _NETWORK_SIDE)).mean(dim=(2, 3)).double().numpy())
    return Embedding("EfficientNet-Lite0's features (ImageNet, frozen)", np.concatenate(rows))


def _thumbnails(squares: Sequence[NDArray[np.uint8]]) -> Embedding:
    small = [Image.fromarray(one).resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX) for one in squares]
    rows = np.stack([np.asarray(one, np.float64).ravel() / 255 for one in small])
    return Embedding(f"thumbnails of {_THUMBNAIL_SIDE} x {_THUMBNAIL_SIDE} pixels", rows)
