"""Decode an image file to the whole upright image in RGB, without torch.

These are steps 1 to 4 of :mod:`.decode`, which lists all of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .file import PILLOW_ERRORS, ImageRejected, Limits, open_image, orientation, rejection

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that undoes it."""

_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr"})

WHITE = (255, 255, 255, 255)


def load_rgb(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Decode an image file to its whole upright image.

    Parameters
    ----------
    data
        Bytes of the whole file.
    limits
        Images outside these limits are rejected.

    Returns
    -------
    uint8 array of shape (height, width, 3)
        RGB.

    Raises
    ------
    ImageRejected
        With the reasons of :func:`.decode.decode`.
    """
    return upright_rgb(open_image(data), limits, data)


def upright_rgb(image: Image.Image, limits: Limits, data: bytes) -> NDArray[np.uint8]:
    """Decode as :func:`load_rgb` does an image that Pillow has opened; ``data`` are the bytes of its file."""
    limits.check(*image.size)
    try:
        image.load()
        rgb = _to_rgb(image)
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None
    turn = _TURNS.get(orientation(image))
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode not in _PLAIN_MODES:
        raise ImageRejected("unsupported-mode", f"Pillow's mode {image.mode}: convert it to 8-bit RGB or 16-bit grey")
    if not image.has_transparency_data:
        return image.convert("RGB")
    transparent = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), transparent).convert("RGB")
