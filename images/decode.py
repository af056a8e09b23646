"""Decode the bytes of an image file to the uint8 image that the ADM sees.

The steps define the meaning of :class:`.spec.ImageSpec`. Steps 1 to 4 are in :mod:`.upright`.

1. **Bounds.** Width and height are read from the header and checked before any pixel is decoded.
2. **Decode.** A file that lacks data of its pixels is rejected; metadata decide nothing. An animated GIF or WebP gives
   its first frame, a TIFF its first page, an APNG its default image, an MPO its first. No reduced-size JPEG decoding
   (Pillow's ``draft``): it changes values.
3. **Orientation.** The EXIF orientation is applied, no other. AVIF, HEIC and JPEG XL turn images by their own
   properties.
4. **Colour.** Conversion to 8-bit RGB: grey is repeated, a palette is looked up, CMYK and YCbCr are converted as Pillow
   does without a colour profile. Transparent pixels are composited on **white**, and so is what a GIF's frame does not
   cover. 16-bit grey is scaled by 1/257 and rounded (65535 becomes 255); 16-bit RGB and 16-bit images with an alpha
   channel keep the high byte, as Pillow reads them. A transparent colour of 16 bits is compared in all its bits.
   Embedded profiles are ignored. 32-bit and signed values and Lab are rejected: nothing states their range.
5. **Harmonization**, if the spec has ``harmonize``: the whole upright image is compressed as a JPEG and decoded again
   (:func:`.perturb.recompress_jpeg`), as if the data set had been saved again as JPEG files. This precedes the resize
   because the files' own compression did: its 8x8 grid is resized like theirs, and no pixel that the ADM sees is
   quantised.
6. **Resize**, by preset. An image that already has the right size is not changed.

   * ``distildire``: float in [0, 1], shorter side to N (the longer one to int(N * long / short)), bilinear with
     antialiasing, then the centre NxN. As ``Resize(N, antialias=True)`` and ``CenterCrop(N)`` of torchvision on a
     float tensor.
   * ``dire-center-crop`` (the option's ``dire``): as ``center_crop_arr`` of guided-diffusion, through which DIRE reads:
     halved by averaging while the shorter side is at least 2 N, then shorter side to N (the longer one rounded),
     bicubic and antialiased, Pillow's filters on 8-bit values, then the centre NxN, which starts at the floor of half
     the rest.
   * ``dire`` (the option's ``dire-v1``): the centre square of the shorter side, then bicubic without antialiasing, on
     floats. This was taken for DIRE's preprocessing at first and stays for the caches that hold it.
   * ``dnf``: both sides to N whatever the proportions, bicubic and antialiased, Pillow's filter on 8-bit values.

7. **Rounding** half up to uint8, after clamping to [0, 255].
8. **Perturbation** of the result, if the spec has ``perturb``; see :mod:`.perturb`. A build perturbs the cached image,
   which gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from ..choices import MAX_PIXELS, StoredPreset
from .budget import PIXELS_IN_FLIGHT, decoding_bytes
from .file import ImageRejected, Limits, content_key
from .opening import format_name, open_image
from .perturb import MAX_JPEG_SIDE, perturb, recompress_jpeg
from .spec import ImageSpec
from .upright import upright_file, upright_rgb

MEMORY_LIMITS = Limits(min_side=1)
"""Limits that protect memory. The smallest side is a property of a dataset, which the scan has checked."""


def decode(data: bytes, spec: ImageSpec, limits: Limits = MEMORY_LIMITS) -> NDArray[np.uint8]:
    """Decode an image file.

    Parameters
    ----------
    data
        Bytes of the whole file.
    spec
        Size, preset, harmonization and perturbation of the result.
    limits
        Images outside these limits are rejected.

    Returns
    -------
    uint8 array of shape (3, size, size)
        RGB, contiguous.

    Raises
    ------
    ImageRejected
        ``empty``, ``not-an-image``, ``truncated``, ``damaged``, ``unsupported-mode``, ``too-large`` or ``too-small``.
    """
    image = open_image(data)
    limits.check(*image.size)
    with PIXELS_IN_FLIGHT.hold(decoding_bytes(*image.size, format_name(image))):
        return _preprocessed(upright_file(image, data), spec, data)


def decode_image(image: Image.Image, spec: ImageSpec, limits: Limits = MEMORY_LIMITS) -> NDArray[np.uint8]:
    """Decode an image in memory, or one that Pillow has opened, as :func:`decode` does.

    Parameters
    ----------
    image
        Opened image. A perturbation is seeded by its pixels.
    spec, limits
        As for :func:`decode`.
    """
    with PIXELS_IN_FLIGHT.hold(decoding_bytes(*image.size)):
        return _preprocessed(upright_rgb(image, limits), spec)


def _preprocessed(pixels: NDArray[np.uint8], spec: ImageSpec, data: bytes = b"") -> NDArray[np.uint8]:
    """Apply steps 5 to 8. The hash of ``data``, the file's bytes, seeds a perturbation; without them, the pixels' does."""
    if spec.harmonize is not None:
        if max(pixels.shape[:2]) > MAX_JPEG_SIDE:
            raise ImageRejected("too-large", f"a side is longer than {MAX_JPEG_SIDE:,}, which no JPEG file holds")
        pixels = recompress_jpeg(pixels, spec.harmonize.quality)
    decoded = _PRESETS[spec.preset](pixels, spec.size)
    if spec.perturb is None:
        return decoded
    return perturb(decoded, content_key(data or pixels.tobytes()), spec.perturb)


def _distildire(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    new_long = int(size * long / short)
    if short == size:
        return _channels_first(_centre(pixels, size))
    if size * new_long > MAX_PIXELS:
        raise ImageRejected("too-large", f"{width}x{height} pixels would become {size}x{new_long}")
    new_size = (size, new_long) if height <= width else (new_long, size)
    resized = functional.interpolate(_to_float(pixels), new_size, mode="bilinear", antialias=True)
    top, left = _centre_corner(*new_size, size)
    return _to_uint8(resized[:, :, top : top + size, left : left + size])


def _dire_center_crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise ImageRejected("too-large", f"{pixels.shape[1]}x{pixels.shape[0]} pixels would become {width}x{height}")
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return _channels_first(resized[top : top + size, left : left + size])


def _dire_v1(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    square = _centre(pixels, min(pixels.shape[:2]))
    if square.shape[0] == size:
        return _channels_first(square)
    return _to_uint8(functional.interpolate(_to_float(square), (size, size), mode="bicubic", antialias=False))


def _dnf(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (size, size):
        return _channels_first(pixels)
    return _channels_first(np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)))


_PRESETS: dict[StoredPreset, Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]] = {
    "distildire": _distildire,
    "dire-center-crop": _dire_center_crop,
    "dire": _dire_v1,
    "dnf": _dnf,
}


def _centre_corner(height: int, width: int, side: int) -> tuple[int, int]:
    """Return top and left of the centre square; half a pixel rounds to even, as in torchvision."""
    return round((height - side) / 2), round((width - side) / 2)


def _centre(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    top, left = _centre_corner(pixels.shape[0], pixels.shape[1], side)
    return pixels[top : top + side, left : left + side]


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _to_float(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Convert uint8 (H, W, 3) to float32 (1, 3, H, W) in [0, 1]."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _to_uint8(values: torch.Tensor) -> NDArray[np.uint8]:
    """Convert float32 (1, 3, N, N), nominally in [0, 1], to uint8 (3, N, N), rounded half up."""
    rounded = values[0].mul(255).clamp_(0, 255).add_(0.5).floor_()
    array: NDArray[np.uint8] = rounded.to(torch.uint8).contiguous().numpy()
    return array
