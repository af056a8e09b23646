"""Perturb a decoded image: JPEG, resize, blur, noise or crop, with a known strength.

Each perturbation takes the cached uint8 image (3, S, S) and returns one of the same shape, from which eps, DIRE and the
other features are computed. The kinds are defined to the pixel:

* ``jpeg:Q``: compressed as JPEG of quality Q and decoded again, by :func:`recompress_jpeg`.
* ``resize:F``: to round(S * F) pixels a side (half up) and back to S, both by Pillow's bicubic filter (a = -0.5) on
  8-bit values: antialiased on the way down.
* ``blur:SIGMA``: a Gaussian in float64, sampled at whole pixels up to int(4 * SIGMA + 0.5), its weights made to sum to
  1; down the columns, then along the rows. Beyond the edge the image is mirrored, its last pixel repeated.
* ``noise:SIGMA``: independent normal noise of SIGMA grey levels on every pixel and channel. It is drawn from the key
  alone, so an image has the same noise in every build and dataset, and the noise of twice the sigma is twice the noise.
* ``crop:F``: the centre square of round(S * F) pixels (half up; the odd pixel is cut below and on the right), enlarged
  to S by the same bicubic filter.

Blur and noise are rounded half up after clamping to [0, 255].

For JPEG, Pillow (libjpeg-turbo) writes a baseline file with the standard tables scaled to the quality, chroma at half
the resolution in both directions (4:2:0), and reads it with its defaults. Optimised or progressive coding would change
the bytes of the file but no pixel. The values are those of the installed Pillow, whose version is in every build
record.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError
from .spec import Perturbation

_Pixels = NDArray[np.uint8]
"""Uint8 RGB of shape (S, S, 3)."""

CHROMA = "4:2:0"
MAX_JPEG_SIDE = 65_500
"""Longest side of a JPEG file that libjpeg writes."""
TRUNCATE = 4.0
"""The Gaussian is cut at this many standard deviations."""


def recompress_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Compress an image as JPEG and decode it again.

    Parameters
    ----------
    pixels
        uint8 RGB of shape (height, width, 3), no side longer than MAX_JPEG_SIDE.
    quality
        1..100.

    Returns
    -------
    uint8 array of shape (height, width, 3)
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=CHROMA)
    return np.array(Image.open(stream, formats=("JPEG",)))


def perturb(image: _Pixels, key: str, how: Perturbation) -> _Pixels:
    """Perturb an image.

    Parameters
    ----------
    image
        uint8 RGB of shape (3, S, S).
    key
        Key of the sample, 32 hex digits. It seeds the noise.
    how
        Kind and strength.

    Returns
    -------
    uint8 array of shape (3, S, S)
        Contiguous.
    """
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    return np.ascontiguousarray(_KINDS[how.kind](pixels, how.strength, key).transpose(2, 0, 1))


def check_perturbation(how: Perturbation, size: int) -> None:
    """Raise UsageError for a share of the side that leaves images of this size unchanged."""
    if how.kind in ("resize", "crop") and part_of(size, how.strength) == size:
        raise UsageError(f"--perturb {how}: leaves images of {size} pixels unchanged. Use a smaller share.")


def part_of(size: int, share: float) -> int:
    """Return a share of a side in whole pixels, rounded half up, at least 1."""
    return max(1, math.floor(size * share + 0.5))


def _jpeg(pixels: _Pixels, quality: float, key: str) -> _Pixels:
    return recompress_jpeg(pixels, int(quality))


def _resize(pixels: _Pixels, share: float, key: str) -> _Pixels:
    size = pixels.shape[0]
    return _scaled(_scaled(pixels, part_of(size, share)), size)


def _blur(pixels: _Pixels, sigma: float, key: str) -> _Pixels:
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    index = _mirrored(pixels.shape[0], radius)
    values = pixels.astype(np.float64)
    for axis in (0, 1):
        spread = values.take(index, axis)
        windows = np.lib.stride_tricks.sliding_window_view(spread, len(weights), axis)
        values = sum(weight * windows[..., number] for number, weight in enumerate(weights))
    return _to_uint8(values)


def _noise(pixels: _Pixels, sigma: float, key: str) -> _Pixels:
    return _to_uint8(pixels + sigma * unit_noise(key, pixels.size).reshape(pixels.shape))


def _crop(pixels: _Pixels, share: float, key: str) -> _Pixels:
    size = pixels.shape[0]
    side = part_of(size, share)
    corner = (size - side) // 2
    return _scaled(pixels[corner : corner + side, corner : corner + side], size)


_KINDS: dict[str, Callable[[_Pixels, float, str], _Pixels]] = {
    "jpeg": _jpeg,
    "resize": _resize,
    "blur": _blur,
    "noise": _noise,
    "crop": _crop,
}


def unit_noise(key: str, count: int) -> NDArray[np.float64]:
    """Return ``count`` standard normal numbers, seeded with the key.

    The Box-Muller transform (cosine branch) of the raw 64-bit stream of PCG64, which NumPy keeps stable between
    versions, unlike its normal distribution. The first half of the stream gives the radii, the second the angles; the
    upper 53 bits of a number n stand for (n + 0.5) / 2**53.
    """
    raw = np.random.PCG64(int(key, 16)).random_raw(2 * count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    drawn: NDArray[np.float64] = np.sqrt(-2 * np.log(uniform[:count])) * np.cos(2 * np.pi * uniform[count:])
    return drawn


def _scaled(pixels: _Pixels, side: int) -> _Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _mirrored(length: int, radius: int) -> NDArray[np.intp]:
    """Return indices that mirror a line of pixels beyond both ends: c b a | a b c | c b a, as often as needed."""
    index = np.arange(-radius, length + radius) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def _to_uint8(values: NDArray[np.float64]) -> _Pixels:
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)
